/*
 * The physical limits: what the kernel asks for moving packets, with no encryption, no routing and no checks.
 *
 *   floors single TUN LOCAL REMOTE PORT     TUN <-> UDP, one packet a system call, two threads that block
 *   floors batch  TUN LOCAL REMOTE PORT     the same with UDP_SEGMENT, UDP_GRO, sendmmsg and recvmmsg
 *   floors relay  LOCAL PORT FIRST SECOND   UDP <-> UDP: what comes from FIRST goes to SECOND and back, with GSO/GRO
 *
 * No packet waits for a batch: a batch is what is there when a thread looks. Ends by SIGTERM.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <netinet/udp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#define UDP_GRO 104
#endif

enum {
	PACKETS = 64,          /* of one wake-up; also the kernel's limit of segments in a message */
	SLOT = 2048,           /* a packet */
	MESSAGES = 16,         /* of one recvmmsg */
	MESSAGE_BYTES = 65536, /* a GRO message may be that long */
	GSO_BYTES = 65000,
	CONTROL_BYTES = 64,
	SOCKET_BUFFER = 4 << 20,
};

static int tun, sock;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int open_tun(const char *name)
{
	struct ifreq request = { .ifr_flags = IFF_TUN | IFF_NO_PI };
	int fd = open("/dev/net/tun", O_RDWR);

	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &request))
		die("floors: tun");
	return fd;
}

static struct sockaddr_in address(const char *host, const char *port)
{
	struct sockaddr_in found = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port)) };

	if (inet_pton(AF_INET, host, &found.sin_addr) != 1) {
		fprintf(stderr, "floors: not an address: %s\n", host);
		exit(2);
	}
	return found;
}

static int open_socket(const char *host, const char *port)
{
	struct sockaddr_in here = address(host, port);
	int fd = socket(AF_INET, SOCK_DGRAM, 0), buffer = SOCKET_BUFFER;

	if (fd < 0 || bind(fd, (struct sockaddr *)&here, sizeof here))
		die("floors: socket");
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer);
	setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof buffer);
	return fd;
}

static void enable_gro(int fd)
{
	int on = 1;

	if (setsockopt(fd, IPPROTO_UDP, UDP_GRO, &on, sizeof on))
		die("floors: UDP_GRO");
}

/* Whether the peer is there yet (ECONNREFUSED, after its ICMP) is no business of a copy. */
static int is_passing(int error)
{
	return error == EAGAIN || error == EINTR || error == ECONNREFUSED || error == ENOBUFS || error == EIO;
}

static void *single_out(void *unused)
{
	static char packet[MESSAGE_BYTES];

	for (;;) {
		ssize_t size = read(tun, packet, sizeof packet);
		if (size < 0 ? !is_passing(errno) : send(sock, packet, (size_t)size, 0) < 0 && !is_passing(errno))
			die("floors: out");
	}
	return unused;
}

static void *single_in(void *unused)
{
	static char packet[MESSAGE_BYTES];

	for (;;) {
		ssize_t size = recv(sock, packet, sizeof packet, 0);
		if (size < 0 ? !is_passing(errno) : write(tun, packet, (size_t)size) < 0 && !is_passing(errno))
			die("floors: in");
	}
	return unused;
}

static void set_segment(struct msghdr *message, char *control, uint16_t size)
{
	struct cmsghdr *header = (struct cmsghdr *)control;

	header->cmsg_level = IPPROTO_UDP;
	header->cmsg_type = UDP_SEGMENT;
	header->cmsg_len = CMSG_LEN(sizeof size);
	memcpy(CMSG_DATA(header), &size, sizeof size);
	message->msg_control = control;
	message->msg_controllen = CMSG_SPACE(sizeof size);
}

static void send_batch(struct mmsghdr *messages, int count)
{
	for (int sent = 0; sent < count;) {
		int now = sendmmsg(sock, messages + sent, (unsigned)(count - sent), 0);
		if (now < 0 && !is_passing(errno))
			die("floors: sendmmsg");
		sent += now > 0 ? now : 1;
	}
}

/* Runs of equal size are one message; a shorter packet ends a run, as the kernel demands. */
static int make_messages(struct mmsghdr *messages, struct iovec *vectors, char (*controls)[CONTROL_BYTES], int packets)
{
	int count = 0;

	for (int first = 0, next; first < packets; first = next) {
		size_t size = vectors[first].iov_len, total = size;
		for (next = first + 1; next < packets && vectors[next - 1].iov_len == size &&
		                       vectors[next].iov_len <= size && total + vectors[next].iov_len <= GSO_BYTES; next++)
			total += vectors[next].iov_len;
		struct msghdr *message = &messages[count].msg_hdr;
		*message = (struct msghdr){ .msg_iov = &vectors[first], .msg_iovlen = (size_t)(next - first) };
		if (next - first > 1)
			set_segment(message, controls[count], (uint16_t)size);
		count++;
	}
	return count;
}

static void *batch_out(void *unused)
{
	static char slots[PACKETS][SLOT];
	static char controls[PACKETS][CONTROL_BYTES] __attribute__((aligned(8)));
	static struct iovec vectors[PACKETS];
	static struct mmsghdr messages[PACKETS];

	for (;;) {
		int packets = 0;
		ssize_t size;
		/* The first read blocks, the others take what is there: no poll. */
		do {
			vectors[packets] = (struct iovec){ slots[packets], SLOT };
			size = preadv2(tun, &vectors[packets], 1, -1, packets ? RWF_NOWAIT : 0);
			if (size > 0)
				vectors[packets++].iov_len = (size_t)size;
			else if (size < 0 && !is_passing(errno))
				die("floors: read");
		} while (size > 0 && packets < PACKETS);
		send_batch(messages, make_messages(messages, vectors, controls, packets));
	}
	return unused;
}

static size_t segment_of(struct msghdr *message, size_t size)
{
	struct cmsghdr *header;
	int segment;

	for (header = CMSG_FIRSTHDR(message); header; header = CMSG_NXTHDR(message, header))
		if (header->cmsg_level == IPPROTO_UDP && header->cmsg_type == UDP_GRO) {
			memcpy(&segment, CMSG_DATA(header), sizeof segment);
			return (size_t)segment;
		}
	return size;
}

static char received[MESSAGES][MESSAGE_BYTES];
static char received_controls[MESSAGES][CONTROL_BYTES] __attribute__((aligned(8)));
static struct sockaddr_in received_from[MESSAGES];
static struct iovec received_vectors[MESSAGES];
static struct mmsghdr received_messages[MESSAGES];

static int receive_batch(void)
{
	for (int i = 0; i < MESSAGES; i++) {
		received_vectors[i] = (struct iovec){ received[i], MESSAGE_BYTES };
		received_messages[i].msg_hdr = (struct msghdr){ .msg_iov = &received_vectors[i], .msg_iovlen = 1,
			.msg_name = &received_from[i], .msg_namelen = sizeof received_from[i],
			.msg_control = received_controls[i], .msg_controllen = CONTROL_BYTES };
	}
	int count = recvmmsg(sock, received_messages, MESSAGES, MSG_WAITFORONE, NULL);
	if (count < 0 && !is_passing(errno))
		die("floors: recvmmsg");
	return count;
}

static void *batch_in(void *unused)
{
	for (;;) {
		int count = receive_batch();
		for (int i = 0; i < count; i++) {
			size_t size = received_messages[i].msg_len;
			size_t segment = segment_of(&received_messages[i].msg_hdr, size);
			for (size_t at = 0; at < size; at += segment) {
				size_t length = size - at < segment ? size - at : segment;
				if (write(tun, received[i] + at, length) < 0 && !is_passing(errno))
					die("floors: write");
			}
		}
	}
	return unused;
}

static void relay(struct sockaddr_in first, struct sockaddr_in second)
{
	static char controls[MESSAGES][CONTROL_BYTES] __attribute__((aligned(8)));

	for (;;) {
		int count = receive_batch();
		for (int i = 0; i < count; i++) {
			struct msghdr *message = &received_messages[i].msg_hdr;
			size_t size = received_messages[i].msg_len, segment = segment_of(message, size);
			int is_first = received_from[i].sin_addr.s_addr == first.sin_addr.s_addr;

			received_vectors[i].iov_len = size;
			received_from[i] = is_first ? second : first;
			message->msg_control = NULL;
			message->msg_controllen = 0;
			if (segment < size)
				set_segment(message, controls[i], (uint16_t)segment);
		}
		if (count > 0)
			send_batch(received_messages, count);
	}
}

static void copy(void *(*out)(void *), void *(*in)(void *), const struct sockaddr_in *remote)
{
	pthread_t thread;

	if (connect(sock, (const struct sockaddr *)remote, sizeof *remote))
		die("floors: connect");
	if (pthread_create(&thread, NULL, out, NULL))
		die("floors: thread");
	in(NULL);
}

int main(int argc, char **argv)
{
	if (argc != 6) {
		fprintf(stderr, "usage: floors single|batch TUN LOCAL REMOTE PORT | floors relay LOCAL PORT FIRST SECOND\n");
		return 2;
	}
	if (!strcmp(argv[1], "relay")) {
		sock = open_socket(argv[2], argv[3]);
		enable_gro(sock);
		relay(address(argv[4], argv[3]), address(argv[5], argv[3]));
	}
	struct sockaddr_in remote = address(argv[4], argv[5]);
	tun = open_tun(argv[2]);
	sock = open_socket(argv[3], argv[5]);
	if (!strcmp(argv[1], "batch")) {
		enable_gro(sock);
		copy(batch_out, batch_in, &remote);
	}
	copy(single_out, single_in, &remote);
	return 0;
}
