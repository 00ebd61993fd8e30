/*
 * Voice to and from many peers at once: numbered packets at an even pace, and what became of those that came.
 *
 *   talk ADDRESS PORT SIZE       SIZE: bytes of payload; prints `ready`, ends with its standard input
 *
 * Commands come on standard input, one a line:
 *
 *   rate HOST PACKETS_PER_SECOND     talk to it from now on, at the same port; 0: no more. Answers `ok`
 *   report                           a line of JSON: by peer, what was sent to it and what came from it
 *
 * A payload is run(4) number(4), then zeros. A run begins when a rate is given where there was none; a receiver counts the
 * newest run. Times of arrival are the kernel's (SO_TIMESTAMPNS), so that a busy machine lets no gap look longer.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
	MAX_PEERS = 64,
	MAX_NUMBER = 1 << 20,
	MAX_PAYLOAD = 1500,
	MAX_RANGES = 8,
	LATE_NS = 20000000, /* what a sender makes up for after it was not scheduled: a longer burst would test queues */
};

struct peer {
	struct sockaddr_in address;
	uint32_t run, next; /* to it */
	int64_t pace, due;
	uint32_t its_run, highest; /* from it */
	unsigned received, repeated, reordered;
	int64_t first_at, last_at, gap, gap_at;
	uint8_t *seen;
};

static struct peer peers[MAX_PEERS];
static int peer_count, sock, size;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int64_t ns(const struct timespec *t)
{
	return t->tv_sec * 1000000000LL + t->tv_nsec;
}

static int64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return ns(&t);
}

static struct peer *peer_at(struct in_addr host)
{
	struct peer *p = peers;

	while (p < peers + peer_count && p->address.sin_addr.s_addr != host.s_addr)
		p++;
	if (p < peers + peer_count)
		return p;
	if (peer_count == MAX_PEERS)
		return NULL;
	peer_count++;
	p->address = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr = host };
	if (!(p->seen = calloc(1, MAX_NUMBER / 8)))
		die("talk: memory");
	return p;
}

static int64_t send_due(void)
{
	int64_t now = now_ns(), next = now + 1000000000LL;
	uint8_t payload[MAX_PAYLOAD] = { 0 };

	for (struct peer *p = peers; p < peers + peer_count; p++) {
		if (!p->pace)
			continue;
		if (now - p->due > LATE_NS)
			p->due = now;
		for (; p->due <= now; p->due += p->pace) {
			uint32_t head[2] = { htonl(p->run), htonl(p->next++) };

			memcpy(payload, head, sizeof head);
			/* Refused by the kernel, or an ICMP message about an earlier one: sent, and lost. */
			(void)!sendto(sock, payload, (size_t)size, 0, (struct sockaddr *)&p->address, sizeof p->address);
		}
		if (p->due < next)
			next = p->due;
	}
	return next;
}

static void note(struct peer *p, uint32_t run, uint32_t number, int64_t at)
{
	if (number >= MAX_NUMBER || run < p->its_run)
		return;
	if (run > p->its_run) {
		memset(p->seen, 0, MAX_NUMBER / 8);
		p->its_run = run;
		p->highest = p->received = p->repeated = p->reordered = 0;
		p->last_at = p->gap = 0;
		p->first_at = at;
	}
	if (p->seen[number / 8] >> number % 8 & 1) {
		p->repeated++;
		return;
	}
	p->seen[number / 8] |= (uint8_t)(1 << number % 8);
	p->received++;
	p->reordered += number < p->highest;
	if (number > p->highest)
		p->highest = number;
	if (p->last_at && at - p->last_at > p->gap) {
		p->gap = at - p->last_at;
		p->gap_at = p->last_at;
	}
	p->last_at = at;
}

static void receive(void)
{
	for (;;) {
		uint32_t head[2];
		char control[64];
		struct sockaddr_in from;
		struct iovec piece = { head, sizeof head };
		struct msghdr message = { .msg_name = &from, .msg_namelen = sizeof from, .msg_iov = &piece,
					  .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
		ssize_t got = recvmsg(sock, &message, MSG_DONTWAIT);
		struct cmsghdr *stamp;
		struct peer *p;
		struct timespec at;

		if (got < 0 && errno == EAGAIN)
			return;
		if (got != sizeof head || !(stamp = CMSG_FIRSTHDR(&message)) || !(p = peer_at(from.sin_addr)))
			continue;
		memcpy(&at, CMSG_DATA(stamp), sizeof at);
		note(p, ntohl(head[0]), ntohl(head[1]), ns(&at));
	}
}

static void print_missing(const struct peer *p)
{
	const char *separator = "";
	int ranges = 0;

	for (uint32_t n = 0; n < p->highest && ranges < MAX_RANGES; n++) {
		uint32_t first = n;

		while (n < p->highest && !(p->seen[n / 8] >> n % 8 & 1))
			n++;
		if (n == first)
			continue;
		printf("%s[%u, %u]", separator, first, n - 1);
		separator = ", ";
		ranges++;
	}
}

static void report(void)
{
	printf("{");
	for (struct peer *p = peers; p < peers + peer_count; p++) {
		printf("%s\"%s\": {\"sent\": %u, \"received\": %u, \"repeated\": %u, \"reordered\": %u, \"first_at\": %.6f, "
		       "\"last_at\": %.6f, \"longest_gap\": %.6f, \"gap_at\": %.6f, \"missing\": [",
		       p == peers ? "" : ", ", inet_ntoa(p->address.sin_addr), p->next, p->received, p->repeated,
		       p->reordered, p->first_at / 1e9, p->last_at / 1e9, p->gap / 1e9, p->gap_at / 1e9);
		print_missing(p);
		printf("]}");
	}
	printf("}\n");
}

static void obey(char *line, in_port_t port)
{
	char host[64];
	double rate;
	struct in_addr address;
	struct peer *p;

	if (!strcmp(line, "report")) {
		report();
		return;
	}
	if (sscanf(line, "rate %63s %lf", host, &rate) != 2 || inet_pton(AF_INET, host, &address) != 1 ||
	    !(p = peer_at(address))) {
		printf("not a command\n");
		return;
	}
	p->address.sin_port = port;
	if (!p->pace && rate > 0) {
		p->run++;
		p->next = 0;
		p->due = now_ns();
	}
	p->pace = rate > 0 ? (int64_t)(1e9 / rate) : 0;
	printf("ok\n");
}

static void handle_commands(in_port_t port)
{
	static char pending[4096];
	static size_t length;
	ssize_t got = read(0, pending + length, sizeof pending - 1 - length);
	char *line = pending, *end;

	if (got <= 0)
		exit(0);
	length += (size_t)got;
	pending[length] = 0;
	for (; (end = strchr(line, '\n')); line = end + 1) {
		*end = 0;
		obey(line, port);
	}
	fflush(stdout);
	length -= (size_t)(line - pending);
	memmove(pending, line, length);
}

int main(int argc, char **argv)
{
	struct sockaddr_in here = { .sin_family = AF_INET };
	int on = 1, marked = 0xb8 /* EF, as a PBX marks voice */, buffer = 4 << 20;

	if (argc != 4 || inet_pton(AF_INET, argv[1], &here.sin_addr) != 1 || (size = atoi(argv[3])) < 8 || size > MAX_PAYLOAD)
		return 2;
	here.sin_port = htons((uint16_t)atoi(argv[2]));
	if ((sock = socket(AF_INET, SOCK_DGRAM, 0)) < 0 || bind(sock, (struct sockaddr *)&here, sizeof here))
		die("talk");
	setsockopt(sock, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
	setsockopt(sock, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer);
	setsockopt(sock, IPPROTO_IP, IP_TOS, &marked, sizeof marked);
	printf("ready\n");
	fflush(stdout);
	for (;;) {
		struct pollfd ready[] = { { .fd = 0, .events = POLLIN }, { .fd = sock, .events = POLLIN } };
		int64_t wait = send_due() - now_ns();
		struct timespec t = { 0, wait < 1000 ? 1000 : wait > 999999999 ? 999999999 : (long)wait };

		if (ppoll(ready, 2, &t, NULL) < 0 && errno != EINTR)
			die("talk: poll");
		if (ready[1].revents)
			receive();
		if (ready[0].revents)
			handle_commands(here.sin_port);
	}
}
