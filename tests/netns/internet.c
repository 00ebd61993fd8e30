/*
 * A lab's internet: routes IP packets between TUN devices, and delays, loses, repeats and reorders them as it is told.
 *
 *   internet        in the namespace where the devices are made; ends with its standard input
 *
 * Commands come on standard input, one a line, and each is answered by a line, `ok` or what is wrong:
 *
 *   port NAME                    make the TUN device NAME: `ok NUMBER`; it may be moved to another namespace then
 *   route PREFIX/LENGTH NUMBER   what goes to these addresses leaves by this port; the longest prefix counts; -1: nowhere
 *   set NUMBER KEY=VALUE…        delay, jitter (microseconds, one way, of packets from and to this port; jitter is added to
 *                                delay), loss, copies, late (of a million packets: lost, repeated, 30 ms later), mtu (bytes),
 *                                cut (1: all packets are lost), carrier (0: the cable is out)
 *   pair FROM TO KEY=VALUE…      delay, loss and cut from one port to another alone, and hole: what is larger is lost, and
 *                                nobody is told; 0: none
 *   count FROM TO                `ok PACKETS`: those that came from one port and were for the other so far
 *
 * It is HOPS routers wide: a packet with fewer left dies on the way, and its sender gets an ICMP message, as it does for one
 * that is too large and must not be fragmented. Without delay nothing is queued. IPv6 packets that are too large are lost.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum {
	HOPS = 7,
	MAX_PORTS = 64,
	MAX_ROUTES = 512,
	MAX_PACKET = 2048,
	MAX_QUEUED = 65536,
	BATCH = 64,
	LATE_NS = 30000000,
	MILLION = 1000000,
	CONTROL = MAX_PORTS,
	CLOCK,
};

struct port {
	int fd;
	long delay, jitter, loss, copies, late, mtu, cut, carrier;
};

struct pair {
	long delay, loss, cut, hole;
	uint64_t count;
};

struct route {
	int is_v6, length, port;
	uint8_t prefix[16];
};

struct packet {
	int64_t due;
	uint64_t number; /* what is due at the same time leaves in order */
	int from, to, size;
	uint8_t data[];
};

static struct port ports[MAX_PORTS];
static struct pair pairs[MAX_PORTS][MAX_PORTS];
static struct route routes[MAX_ROUTES];
static struct packet *queue[MAX_QUEUED];
static int port_count, route_count, queued, timer, poller;
static uint64_t numbered;
static int64_t armed;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int happens(long of_a_million)
{
	return of_a_million > 0 && random() % MILLION < of_a_million;
}

/* The queue: a heap, the packet that is due first at its root. */

static int is_before(const struct packet *a, const struct packet *b)
{
	return a->due != b->due ? a->due < b->due : a->number < b->number;
}

static void push(struct packet *p)
{
	int at = queued++;

	while (at > 0 && is_before(p, queue[(at - 1) / 2])) {
		queue[at] = queue[(at - 1) / 2];
		at = (at - 1) / 2;
	}
	queue[at] = p;
}

static struct packet *pop(void)
{
	struct packet *first = queue[0], *last = queue[--queued];
	int at = 0, child;

	while ((child = 2 * at + 1) < queued) {
		if (child + 1 < queued && is_before(queue[child + 1], queue[child]))
			child++;
		if (!is_before(queue[child], last))
			break;
		queue[at] = queue[child];
		at = child;
	}
	queue[at] = last;
	return first;
}

static void arm(void)
{
	int64_t due = queued ? queue[0]->due : 0;
	struct itimerspec at = { .it_value = { due / 1000000000LL, due % 1000000000LL } };

	if (due == armed)
		return;
	armed = due;
	timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
}

static void deliver(const struct packet *p)
{
	if (ports[p->to].cut || pairs[p->from][p->to].cut)
		return;
	if (write(ports[p->to].fd, p->data, (size_t)p->size) < 0 && errno != EIO && errno != EINVAL && errno != ENOBUFS)
		die("internet: write"); /* EIO: that device is down */
}

static void deliver_due(void)
{
	int64_t now = now_ns();

	while (queued && queue[0]->due <= now) {
		struct packet *p = pop();
		deliver(p);
		free(p);
	}
	arm();
}

static void send_later(int from, int to, const uint8_t *data, int size, int64_t delay)
{
	struct packet *p;

	if (queued == MAX_QUEUED)
		return;
	if (!(p = malloc(sizeof *p + (size_t)size)))
		die("internet: memory");
	*p = (struct packet){ .due = now_ns() + delay, .number = numbered++, .from = from, .to = to, .size = size };
	memcpy(p->data, data, (size_t)size);
	if (delay) {
		push(p);
		return;
	}
	deliver(p);
	free(p);
}

static int64_t delay_of(const struct port *p)
{
	return 1000 * (p->delay + (p->jitter ? random() % (p->jitter + 1) : 0)) + (happens(p->late) ? LATE_NS : 0);
}

static void pass(int from, int to, const uint8_t *data, int size)
{
	const struct port *a = &ports[from], *b = &ports[to];
	int copies = 1 + happens(a->copies) + happens(b->copies);

	if (happens(a->loss) || happens(b->loss) || happens(pairs[from][to].loss))
		return;
	while (copies--)
		send_later(from, to, data, size, delay_of(a) + delay_of(b) + 1000 * pairs[from][to].delay);
}

/* IPv4 */

static uint16_t checksum(const uint8_t *data, int size)
{
	uint32_t sum = 0;

	for (int at = 0; at < size; at += 2)
		sum += (uint32_t)data[at] << 8 | (at + 1 < size ? data[at + 1] : 0);
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

static void put16(uint8_t *at, unsigned value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

static void seal_header(uint8_t *ip)
{
	put16(ip + 10, 0);
	put16(ip + 10, checksum(ip, (ip[0] & 15) * 4));
}

/* An ICMP message about a packet, to where it came from, as if the router next to its destination had sent it. */
static void complain(int from, const uint8_t *about, int size, int type, int code, int mtu)
{
	int header = (about[0] & 15) * 4, quoted = size < header + 8 ? size : header + 8;
	uint8_t ip[20 + 8 + 60 + 8] = { 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1 };

	if (about[9] == 1 && about[header] != 0 && about[header] != 8)
		return; /* none about another one */
	put16(ip + 2, (unsigned)(28 + quoted));
	memcpy(ip + 12, about + 16, 4);
	memcpy(ip + 16, about + 12, 4);
	seal_header(ip);
	ip[20] = (uint8_t)type;
	ip[21] = (uint8_t)code;
	put16(ip + 26, (unsigned)mtu);
	memcpy(ip + 28, about, (size_t)quoted);
	put16(ip + 22, checksum(ip + 20, 8 + quoted));
	send_later(from, from, ip, 28 + quoted, 2 * delay_of(&ports[from]));
}

static void fragment(int from, int to, const uint8_t *data, int size, int mtu)
{
	int header = (data[0] & 15) * 4, step = (mtu - header) & ~7;
	unsigned before = ((unsigned)data[6] << 8 | data[7]) & 0x3fff; /* it may be a fragment already */

	for (int at = 0; at < size - header; at += step) {
		int rest = size - header - at, now = rest < step ? rest : step;
		uint8_t piece[MAX_PACKET];

		memcpy(piece, data, (size_t)header);
		memcpy(piece + header, data + header + at, (size_t)now);
		put16(piece + 2, (unsigned)(header + now));
		put16(piece + 6, (unsigned)(before + (unsigned)at / 8) | (rest > step ? 0x2000 : 0));
		seal_header(piece);
		pass(from, to, piece, header + now);
	}
}

static int route_of(int is_v6, const uint8_t *address)
{
	int best = -1, longest = -1;

	for (const struct route *r = routes; r < routes + route_count; r++) {
		int whole = r->length / 8, rest = r->length % 8;

		if (r->is_v6 != is_v6 || r->length <= longest || memcmp(r->prefix, address, (size_t)whole))
			continue;
		if (rest && (r->prefix[whole] ^ address[whole]) >> (8 - rest))
			continue;
		longest = r->length;
		best = r->port;
	}
	return best;
}

static int smaller(long a, long b)
{
	return (int)(a < b ? a : b);
}

static void handle4(int from, uint8_t *data, int size)
{
	int to, mtu;

	if (size < 20 || size < (data[0] & 15) * 4 || (to = route_of(0, data + 16)) < 0)
		return;
	pairs[from][to].count++;
	if (data[8] <= HOPS) {
		complain(from, data, size, 11, 0, 0);
		return;
	}
	if (pairs[from][to].hole && size > pairs[from][to].hole)
		return;
	data[8] = (uint8_t)(data[8] - HOPS);
	seal_header(data);
	mtu = smaller(ports[from].mtu, ports[to].mtu);
	if (size <= mtu)
		pass(from, to, data, size);
	else if (data[6] & 0x40)
		complain(from, data, size, 3, 4, mtu);
	else
		fragment(from, to, data, size, mtu);
}

static void handle6(int from, uint8_t *data, int size)
{
	int to;

	if (size < 40 || (to = route_of(1, data + 24)) < 0)
		return;
	pairs[from][to].count++;
	if (data[7] <= HOPS || size > smaller(ports[from].mtu, ports[to].mtu))
		return;
	data[7] = (uint8_t)(data[7] - HOPS);
	pass(from, to, data, size);
}

static void handle_packets(int from)
{
	uint8_t data[MAX_PACKET];

	for (int n = 0; n < BATCH; n++) {
		ssize_t size = read(ports[from].fd, data, sizeof data);

		if (size <= 0)
			break;
		if (ports[from].cut)
			continue;
		if (data[0] >> 4 == 4)
			handle4(from, data, (int)size);
		else
			handle6(from, data, (int)size);
	}
	arm();
}

/* Control */

static void watch(int fd, int what)
{
	struct epoll_event event = { .events = EPOLLIN, .data.u32 = (uint32_t)what };

	if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event))
		die("internet: epoll_ctl");
}

static const char *add_port(const char *name)
{
	struct ifreq request = { .ifr_flags = IFF_TUN | IFF_NO_PI };
	struct port *p = &ports[port_count];

	if (port_count == MAX_PORTS)
		return "too many ports";
	*p = (struct port){ .mtu = 1500, .carrier = 1 };
	snprintf(request.ifr_name, sizeof request.ifr_name, "%.15s", name);
	if ((p->fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC)) < 0 || ioctl(p->fd, TUNSETIFF, &request))
		return strerror(errno);
	watch(p->fd, port_count);
	printf("ok %d\n", port_count++);
	return NULL;
}

static const char *add_route(char *prefix, int port)
{
	struct route r = { .is_v6 = strchr(prefix, ':') != NULL, .port = port };
	char *slash = strchr(prefix, '/');
	struct route *found = routes;

	if (!slash || port >= port_count)
		return "not a route";
	*slash = 0;
	r.length = atoi(slash + 1);
	if (inet_pton(r.is_v6 ? AF_INET6 : AF_INET, prefix, r.prefix) != 1)
		return "not an address";
	while (found < routes + route_count &&
	       (found->is_v6 != r.is_v6 || found->length != r.length || memcmp(found->prefix, r.prefix, 16)))
		found++;
	if (found == routes + MAX_ROUTES)
		return "too many routes";
	route_count += found == routes + route_count;
	*found = r;
	puts("ok");
	return NULL;
}

static long *field(struct port *port, struct pair *pair, const char *key)
{
	const struct {
		const char *key;
		long *at;
	} of_port[] = { { "delay", &port->delay }, { "jitter", &port->jitter }, { "loss", &port->loss },
			{ "copies", &port->copies }, { "late", &port->late }, { "mtu", &port->mtu },
			{ "cut", &port->cut }, { "carrier", &port->carrier } };

	if (pair)
		return !strcmp(key, "delay") ? &pair->delay : !strcmp(key, "loss") ? &pair->loss :
		       !strcmp(key, "cut") ? &pair->cut : !strcmp(key, "hole") ? &pair->hole : NULL;
	for (size_t n = 0; n < sizeof of_port / sizeof *of_port; n++)
		if (!strcmp(of_port[n].key, key))
			return of_port[n].at;
	return NULL;
}

static const char *assign(struct port *port, struct pair *pair, char *rest)
{
	for (char *word = strtok(rest, " \n"); word; word = strtok(NULL, " \n")) {
		char *value = strchr(word, '=');
		long *at;

		if (!value)
			return "not KEY=VALUE";
		*value = 0;
		if (!(at = field(port, pair, word)))
			return "no such key";
		*at = atol(value + 1);
		if (port && at == &port->carrier) {
			int on = *at != 0;
			if (ioctl(port->fd, TUNSETCARRIER, &on))
				return strerror(errno);
		}
	}
	puts("ok");
	return NULL;
}

static const char *obey(char *line)
{
	char name[64];
	int a, b, at = 0;

	if (sscanf(line, "port %15s", name) == 1)
		return add_port(name);
	if (sscanf(line, "route %63s %d", name, &a) == 2)
		return add_route(name, a);
	if (sscanf(line, "set %d %n", &a, &at) == 1 && at && a >= 0 && a < port_count)
		return assign(&ports[a], NULL, line + at);
	if (sscanf(line, "pair %d %d %n", &a, &b, &at) == 2 && at && a >= 0 && b >= 0 && a < port_count && b < port_count)
		return assign(NULL, &pairs[a][b], line + at);
	if (sscanf(line, "count %d %d", &a, &b) == 2 && a >= 0 && b >= 0 && a < port_count && b < port_count) {
		printf("ok %llu\n", (unsigned long long)pairs[a][b].count);
		return NULL;
	}
	return "not a command";
}

static void handle_control(void)
{
	static char pending[4096];
	static size_t size;
	ssize_t got = read(0, pending + size, sizeof pending - 1 - size);
	char *line = pending, *end;

	if (got <= 0)
		exit(0);
	size += (size_t)got;
	pending[size] = 0;
	while ((end = strchr(line, '\n'))) {
		const char *problem;

		*end = 0;
		if ((problem = obey(line)))
			printf("%s\n", problem);
		line = end + 1;
	}
	fflush(stdout);
	size -= (size_t)(line - pending);
	memmove(pending, line, size);
}

int main(void)
{
	struct epoll_event events[BATCH];

	srandom(1);
	if ((poller = epoll_create1(0)) < 0 || (timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)) < 0)
		die("internet");
	watch(0, CONTROL);
	watch(timer, CLOCK);
	for (;;) {
		int ready = epoll_wait(poller, events, BATCH, -1);

		for (int n = 0; n < ready; n++) {
			uint64_t expired;
			int what = (int)events[n].data.u32;

			if (what == CONTROL) {
				handle_control();
			} else if (what == CLOCK) {
				if (read(timer, &expired, sizeof expired) > 0)
					armed = 0;
				deliver_due();
			} else {
				handle_packets(what);
			}
		}
	}
}
