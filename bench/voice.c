/*
 * Voice-shaped load: small UDP packets at a constant rate, and what became of them.
 *
 *   voice send HOST PORT PACKETS_PER_SECOND IP_BYTES FLOWS SECONDS [SPAN FROM]
 *   voice receive PORT FLOWS            until SIGTERM; prints "ready" first
 *
 * With SPAN, flow n goes to the address HOST + n % SPAN, from FROM + n % SPAN. Each prints one line of JSON. A packet's payload is flow(4) sequence(4) send time(8, CLOCK_REALTIME ns), then zeros;
 * each flow has a source port of its own. The receiver's times are the kernel's (SO_TIMESTAMPNS), so it need not hurry: it
 * looks every few milliseconds and takes everything, and neither its wake-ups nor its haste cost the daemons anything.
 *
 * The sender is an open loop: it runs under SCHED_FIFO, so that the load does not depend on how busy the daemons are. It
 * sleeps until a packet is due, spins only where that is nearer than SPIN_NS, and sends what is overdue at once. Above
 * 50,000 packets a second they leave on a grid of TICK_NS, two or three at a time, much as a network card's interrupts hand
 * them over: to wake up for each would take the processor that the daemons are to have. If it was held up for longer than LAG_NS (nobody else's real-time work should do that), it moves its schedule and says so.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

enum {
	SPIN_NS = 3000,
	TICK_NS = 20000,
	LAG_NS = 2000000,
	LOOK_NS = 3000000,
	HEAD = 16,
	UDP_IP_HEADERS = 28,
	MAX_FLOWS = 4096,
	MAX_PAYLOAD = 9000,
	BATCH = 256,
	RECEIVE_BUFFER = 256 << 20,
	SUB_BITS = 6, /* a bucket is 1/64 of its power of two wide: 1.6 % */
	BUCKETS = 64 << SUB_BITS,
};

struct head {
	uint32_t flow, sequence;
	uint64_t sent_at;
};

struct flow {
	uint32_t highest;
	uint64_t seen; /* bit n: highest - n came */
	int is_begun;
	double last_delay, jitter;
};

static volatile sig_atomic_t is_stopped;

static void stop(int number)
{
	(void)number;
	is_stopped = 1;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int64_t nanoseconds(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static double cpu_seconds(void)
{
	struct rusage u;
	getrusage(RUSAGE_SELF, &u);
	return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void sleep_until(int64_t at)
{
	struct timespec t = { at / 1000000000LL, at % 1000000000LL };
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static struct sockaddr_in address(const char *host, int port)
{
	struct sockaddr_in found = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };

	if (inet_pton(AF_INET, host, &found.sin_addr) != 1) {
		fprintf(stderr, "voice: not an address: %s\n", host);
		exit(2);
	}
	return found;
}

static struct sockaddr_in plus(struct sockaddr_in base, int offset)
{
	base.sin_addr.s_addr = htonl(ntohl(base.sin_addr.s_addr) + (uint32_t)offset);
	return base;
}

static int open_flow(struct sockaddr_in from, struct sockaddr_in to)
{
	int tos = 0xb8; /* EF, as a PBX marks voice */
	int buffer = 4 << 20;
	int sock = socket(AF_INET, SOCK_DGRAM, 0);

	if (sock < 0 || bind(sock, (struct sockaddr *)&from, sizeof from) ||
	    connect(sock, (struct sockaddr *)&to, sizeof to))
		die("voice: socket");
	setsockopt(sock, IPPROTO_IP, IP_TOS, &tos, sizeof tos);
	setsockopt(sock, SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof buffer);
	return sock;
}

static int send_all(int argc, char **argv)
{
	struct sockaddr_in to = address(argv[0], atoi(argv[1])), from = address(argc == 8 ? argv[7] : "0.0.0.0", 0);
	int span = argc == 8 ? atoi(argv[6]) : 1;
	double rate = atof(argv[2]), seconds = atof(argv[5]);
	int bytes = atoi(argv[3]) - UDP_IP_HEADERS, flows = atoi(argv[4]);
	static int sockets[MAX_FLOWS];
	static char payload[MAX_PAYLOAD];
	struct head *head = (struct head *)payload;
	struct sched_param priority = { .sched_priority = 1 };
	int64_t total = (int64_t)(rate * seconds), sent = 0, refused = 0, moved = 0, worst = 0;

	if (span < 1 || rate <= 0 || bytes < HEAD || bytes > MAX_PAYLOAD ||
	    flows < 1 || flows > MAX_FLOWS || seconds <= 0 || seconds > 3600) {
		fprintf(stderr, "voice: impossible arguments\n");
		return 2;
	}
	for (int i = 0; i < flows; i++)
		sockets[i] = open_flow(plus(from, argc == 8 ? i % span : 0), plus(to, i % span));
	if (sched_setscheduler(0, SCHED_FIFO, &priority))
		die("voice: SCHED_FIFO");

	double interval = 1e9 / rate;
	int64_t started = nanoseconds(CLOCK_MONOTONIC), origin = started;
	for (int64_t n = 0; n < total; n++) {
		int64_t offset = (int64_t)((double)n * interval), now = nanoseconds(CLOCK_MONOTONIC);
		int64_t due = origin + (interval < TICK_NS ? offset / TICK_NS * TICK_NS : offset);

		if (due - now > SPIN_NS)
			sleep_until(due);
		while ((now = nanoseconds(CLOCK_MONOTONIC)) < due)
			;
		if (now - due > worst)
			worst = now - due;
		if (now - due > LAG_NS) {
			origin += now - due;
			moved += now - due;
		}
		head->flow = (uint32_t)(n % flows);
		head->sequence = (uint32_t)(n / flows);
		head->sent_at = (uint64_t)nanoseconds(CLOCK_REALTIME);
		/* A packet that the kernel refuses (queue full) is a lost packet like any other. */
		if (send(sockets[head->flow], payload, (size_t)bytes, 0) < 0)
			refused++;
		sent++;
	}
	double took = (double)(nanoseconds(CLOCK_MONOTONIC) - started) / 1e9;
	printf("{\"sent\": %lld, \"refused\": %lld, \"seconds\": %.6f, \"worst_lag_ms\": %.3f, \"moved_ms\": %.3f, "
	       "\"cpu\": %.6f}\n",
	       (long long)sent, (long long)refused, took, worst / 1e6, moved / 1e6, cpu_seconds());
	return 0;
}

static uint64_t histogram[BUCKETS];

static int bucket_of(uint64_t value)
{
	if (value < (2u << SUB_BITS))
		return (int)value;
	int shift = 63 - __builtin_clzll(value) - SUB_BITS;
	return (shift << SUB_BITS) + (int)(value >> shift);
}

static double middle_of(int bucket)
{
	if (bucket < (2 << SUB_BITS))
		return bucket;
	int shift = (bucket >> SUB_BITS) - 1;
	double low = ldexp((bucket & ((1 << SUB_BITS) - 1)) + (1 << SUB_BITS), shift);
	return low + ldexp(1, shift) / 2;
}

static double quantile_ms(double part, uint64_t count)
{
	uint64_t rank = (uint64_t)ceil(part * (double)count), passed = 0;

	for (int i = 0; i < BUCKETS; i++)
		if ((passed += histogram[i]) >= rank && passed)
			return middle_of(i) / 1e6;
	return 0;
}

static uint64_t received, duplicates, reordered;
static struct flow flows_seen[MAX_FLOWS];

static void count_packet(const struct head *head, int64_t at, uint32_t flows)
{
	if (head->flow >= flows)
		return;
	struct flow *flow = &flows_seen[head->flow];
	int64_t delay = at - (int64_t)head->sent_at;
	int32_t ahead = (int32_t)(head->sequence - flow->highest);

	if (!flow->is_begun || ahead > 0) {
		flow->seen = ahead > 63 || !flow->is_begun ? 1 : flow->seen << ahead | 1;
		flow->highest = head->sequence;
	} else if (ahead > -64 && flow->seen >> -ahead & 1) {
		duplicates++;
		return;
	} else {
		if (ahead > -64)
			flow->seen |= 1ull << -ahead;
		reordered++; /* RFC 4737 */
	}
	received++;
	histogram[bucket_of(delay > 0 ? (uint64_t)delay : 0)]++;
	if (flow->is_begun) /* RFC 3550 §6.4.1 */
		flow->jitter += (fabs((double)delay - flow->last_delay) - flow->jitter) / 16;
	flow->last_delay = (double)delay;
	flow->is_begun = 1;
}

static void take_all(int sock, uint32_t flows)
{
	static struct head heads[BATCH];
	static char controls[BATCH][64] __attribute__((aligned(8)));
	static struct iovec vectors[BATCH];
	static struct mmsghdr messages[BATCH];
	int count;

	do {
		for (int i = 0; i < BATCH; i++) {
			vectors[i] = (struct iovec){ &heads[i], sizeof heads[i] };
			messages[i].msg_hdr = (struct msghdr){ .msg_iov = &vectors[i], .msg_iovlen = 1,
				.msg_control = controls[i], .msg_controllen = sizeof controls[i] };
		}
		count = recvmmsg(sock, messages, BATCH, MSG_DONTWAIT, NULL);
		for (int i = 0; i < count; i++) {
			struct cmsghdr *control = CMSG_FIRSTHDR(&messages[i].msg_hdr);
			if (messages[i].msg_len < HEAD || !control || control->cmsg_type != SCM_TIMESTAMPNS)
				continue;
			struct timespec at;
			memcpy(&at, CMSG_DATA(control), sizeof at);
			count_packet(&heads[i], at.tv_sec * 1000000000LL + at.tv_nsec, flows);
		}
	} while (count == BATCH);
}

static int receive_all(char **argv)
{
	struct sockaddr_in here = address("0.0.0.0", atoi(argv[0]));
	uint32_t flows = (uint32_t)atoi(argv[1]);
	int sock = socket(AF_INET, SOCK_DGRAM, 0), on = 1, buffer = RECEIVE_BUFFER;

	if (flows < 1 || flows > MAX_FLOWS)
		return 2;
	if (sock < 0 || setsockopt(sock, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer) ||
	    setsockopt(sock, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on) ||
	    bind(sock, (struct sockaddr *)&here, sizeof here))
		die("voice: receive");
	signal(SIGTERM, stop);
	signal(SIGINT, stop);
	printf("ready\n");
	fflush(stdout);
	while (!is_stopped) {
		sleep_until(nanoseconds(CLOCK_MONOTONIC) + LOOK_NS);
		take_all(sock, flows);
	}
	take_all(sock, flows);

	double jitter = 0;
	int begun = 0;
	for (uint32_t i = 0; i < flows; i++)
		if (flows_seen[i].is_begun) {
			jitter += flows_seen[i].jitter;
			begun++;
		}
	printf("{\"received\": %llu, \"duplicates\": %llu, \"reordered\": %llu, \"p50_ms\": %.4f, \"p99_ms\": %.4f, "
	       "\"p999_ms\": %.4f, \"jitter_ms\": %.4f, \"cpu\": %.6f}\n",
	       (unsigned long long)received, (unsigned long long)duplicates, (unsigned long long)reordered,
	       quantile_ms(0.5, received), quantile_ms(0.99, received), quantile_ms(0.999, received),
	       begun ? jitter / begun / 1e6 : 0, cpu_seconds());
	return 0;
}

int main(int argc, char **argv)
{
	if ((argc == 8 || argc == 10) && !strcmp(argv[1], "send"))
		return send_all(argc - 2, argv + 2);
	if (argc == 4 && !strcmp(argv[1], "receive"))
		return receive_all(argv + 2);
	fprintf(stderr, "usage: voice send HOST PORT PPS IP_BYTES FLOWS SECONDS [SPAN FROM] | voice receive PORT FLOWS\n");
	return 2;
}
