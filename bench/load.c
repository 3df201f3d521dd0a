/* The load of bench/data.py: one thread that is client and server at once, each in a network namespace of its own.
 *
 * Must not know what lies between the two. The one idea: over veth a packet is carried to its end inside the system
 * call that sends it, so one thread on one core is client, kernel and server in turn: nobody sleeps, nobody is woken,
 * and a second of that core is spent on the way and on the system calls that both ends of it need anyway.
 *
 *   load connect CLIENT TARGET ADDRESS PORT LISTEN MILLISECONDS WINDOW CORE   connect, one byte, close; WINDOW at once
 *   load new     ... (the same)                                              UDP, one packet of each flow
 *   load udp     ... (the same)                                              UDP, one flow, WINDOW packets at once
 *   load bulk    ... (the same)                                              one TCP stream
 *
 * CLIENT and TARGET are files of network namespaces. It prints: number (connections, packets, bytes), seconds, seconds
 * of processor in this program, in the kernel for it, and p50 and p99 in microseconds (connect, with WINDOW 1).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 256, PACKET = 64, CHUNK = 256 * 1024, LATENCIES = 1 << 20 };

static int client_space, target_space, window;
static struct addrinfo *to;
static double duration, started, until, took[LATENCIES];
static long took_count;
static char bytes[CHUNK];

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* From here on it counts. */
static void begin(void)
{
    started = now();
    until = started + duration;
}

static int space(const char *file)
{
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        err(1, "%s", file);
    return fd;
}

static void enter(int fd)
{
    if (setns(fd, CLONE_NEWNET))
        err(1, "setns");
}

/* A socket that waits for two seconds at most, so that a way that is blocked ends the measurement. */
static int patient(int family, int kind)
{
    struct timeval most = {.tv_sec = 2};
    int fd = socket(family, kind | SOCK_CLOEXEC, 0);
    if (fd < 0)
        err(1, "socket");
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &most, sizeof most);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &most, sizeof most);
    return fd;
}

/* Where the target takes what comes, of the address's family; the thread stays in the client's namespace. */
static int server(int kind, int port)
{
    int fd, one = 1, room = 8 << 20;
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    enter(target_space);
    fd = patient(to->ai_family, kind);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
    if (to->ai_family == AF_INET ? bind(fd, (void *)&four, sizeof four) : bind(fd, (void *)&six, sizeof six))
        err(1, "bind %d", port);
    if (kind == SOCK_STREAM && listen(fd, 1024))
        err(1, "listen %d", port);
    enter(client_space);
    return fd;
}

static int client(int kind)
{
    int fd = patient(to->ai_family, kind);
    if (connect(fd, to->ai_addr, to->ai_addrlen))
        err(1, "connect");
    return fd;
}

/* Connect, accept, a byte, close. The server closes last and by a reset, so that no port waits for a minute (TIME_WAIT). */
static long connections(int listener)
{
    int ours[MOST], theirs[MOST];
    struct linger reset = {.l_onoff = 1};
    long count = 0;
    begin();
    for (double first = started; !count || first < until; first = now()) {
        for (int i = 0; i < window; i++)
            ours[i] = client(SOCK_STREAM);
        for (int i = 0; i < window; i++) {
            if ((theirs[i] = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) < 0)
                err(1, "accept");
            if (send(theirs[i], "x", 1, MSG_NOSIGNAL) != 1)
                err(1, "send");
        }
        for (int i = 0; i < window; i++)
            if (recv(ours[i], bytes, 1, 0) != 1)
                err(1, "recv");
        if (took_count < LATENCIES)
            took[took_count++] = now() - first;
        for (int i = 0; i < window; i++)
            close(ours[i]);
        for (int i = 0; i < window; i++) {
            if (recv(theirs[i], bytes, 1, 0) != 0)
                err(1, "recv at the end");
            setsockopt(theirs[i], SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
            close(theirs[i]);
        }
        count += window;
    }
    return count;
}

/* Take so many packets at the target. */
static void taken(int receiver, int packets)
{
    static struct mmsghdr in[MOST];
    static struct iovec place = {bytes, PACKET};
    for (int i = 0; i < packets; i++)
        in[i].msg_hdr = (struct msghdr){.msg_iov = &place, .msg_iovlen = 1};
    while (packets > 0) {
        int got = recvmmsg(receiver, in, packets, MSG_WAITFORONE, NULL);
        if (got <= 0)
            err(1, "recvmmsg");
        packets -= got;
    }
}

static long flows(int receiver)
{
    int ours[MOST];
    long count = 0;
    for (begin(); !count || now() < until; count += window) {
        for (int i = 0; i < window; i++) {
            ours[i] = client(SOCK_DGRAM);
            if (send(ours[i], bytes, PACKET, 0) != PACKET)
                err(1, "send");
        }
        taken(receiver, window);
        for (int i = 0; i < window; i++)
            close(ours[i]);
    }
    return count;
}

static long packets(int receiver)
{
    static struct mmsghdr out[MOST];
    struct iovec place = {bytes, PACKET};
    int fd = client(SOCK_DGRAM);
    struct sockaddr_storage from;
    socklen_t length = sizeof from;
    long count = 0;
    /* A flow runs once it was answered. */
    if (send(fd, bytes, PACKET, 0) != PACKET ||
        recvfrom(receiver, bytes, PACKET, 0, (void *)&from, &length) != PACKET ||
        sendto(receiver, bytes, PACKET, 0, (void *)&from, length) != PACKET || recv(fd, bytes, PACKET, 0) != PACKET)
        err(1, "first answer");
    for (int i = 0; i < window; i++)
        out[i].msg_hdr = (struct msghdr){.msg_iov = &place, .msg_iovlen = 1};
    for (begin(); !count || now() < until; count += window) {
        if (sendmmsg(fd, out, window, 0) != window)
            err(1, "sendmmsg");
        taken(receiver, window);
    }
    close(fd);
    return count;
}

static long stream(int listener)
{
    int ours = client(SOCK_STREAM), theirs = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    struct linger reset = {.l_onoff = 1};
    long count = 0;
    if (theirs < 0)
        err(1, "accept");
    for (begin(); !count || now() < until;) {
        ssize_t sent = send(ours, bytes, CHUNK, MSG_DONTWAIT | MSG_NOSIGNAL);
        ssize_t got = recv(theirs, bytes, CHUNK, MSG_DONTWAIT);
        if ((sent < 0 && errno != EAGAIN) || got == 0 || (got < 0 && errno != EAGAIN))
            err(1, "stream");
        if (got > 0)
            count += got;
        if (sent < 0 && got < 0) {
            struct pollfd ready[2] = {{.fd = ours, .events = POLLOUT}, {.fd = theirs, .events = POLLIN}};
            if (poll(ready, 2, 2000) <= 0)
                errx(1, "the stream stands still");
        }
    }
    setsockopt(theirs, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    close(theirs);
    close(ours);
    return count;
}

static const struct {
    const char *name;
    int kind;
    long (*run)(int);
} MODES[] = {
    {"connect", SOCK_STREAM, connections},
    {"new", SOCK_DGRAM, flows},
    {"udp", SOCK_DGRAM, packets},
    {"bulk", SOCK_STREAM, stream},
};

static int rising(const void *one, const void *other)
{
    double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

static double seconds(struct timeval t)
{
    return t.tv_sec + t.tv_usec / 1e6;
}

int main(int argc, char **argv)
{
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
    struct rusage before, after;
    cpu_set_t core;
    size_t mode = 0;
    int fd;
    if (argc != 10)
        errx(2, "load MODE CLIENT TARGET ADDRESS PORT LISTEN MILLISECONDS WINDOW CORE");
    while (mode < sizeof MODES / sizeof *MODES && strcmp(argv[1], MODES[mode].name))
        mode++;
    window = atoi(argv[8]);
    if (mode == sizeof MODES / sizeof *MODES || window < 1 || window > MOST)
        errx(2, "%s %s: no such mode or window", argv[1], argv[8]);
    if (getaddrinfo(argv[4], argv[5], &hints, &to))
        errx(2, "%s: no address", argv[4]);
    CPU_ZERO(&core);
    CPU_SET(atoi(argv[9]), &core);
    if (sched_setaffinity(0, sizeof core, &core))
        err(1, "core %s", argv[9]);
    /* Whoever else wants this core waits for the few milliseconds; where that is not allowed, figures spread more. */
    sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 1});
    client_space = space(argv[2]);
    target_space = space(argv[3]);
    fd = server(MODES[mode].kind, atoi(argv[6]));

    /* Neighbours, caches and the connections of a relay are warm before it counts. */
    duration = atof(argv[7]) / 1e3 / 10;
    MODES[mode].run(fd);
    took_count = 0;
    duration *= 10;
    getrusage(RUSAGE_SELF, &before);
    long count = MODES[mode].run(fd);
    double elapsed = now() - started;
    getrusage(RUSAGE_SELF, &after);

    qsort(took, took_count, sizeof *took, rising);
    printf("%ld %.6f %.6f %.6f %.2f %.2f\n", count, elapsed, seconds(after.ru_utime) - seconds(before.ru_utime),
           seconds(after.ru_stime) - seconds(before.ru_stime), took_count ? took[took_count / 2] * 1e6 : 0,
           took_count ? took[took_count * 99 / 100] * 1e6 : 0);
    return 0;
}
