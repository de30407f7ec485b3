/*
 * Gives a resumed copy what only system calls can: run in the guest, once, at the end of its identity script.
 *
 * Shell would start a program for each of these, and starting a program inside an emulated guest takes as long as all of them
 * together. Reads lines from standard input, a letter and its words each, and does them in order:
 *
 *   s TEXT           adds TEXT to the kernel's random pool as entropy and reseeds its generator at once
 *   t SECONDS NANOS  sets the clock: to the time given, or to the real-time clock's where that has gone on meanwhile
 *   h NAME           sets the hostname
 *   m NIC MAC        gives the network interface another hardware address (12 hexadecimal digits), and takes away what it
 *                    had under the old one: its IPv4 and IPv6 addresses
 *   b SOURCE TARGET  binds the file SOURCE over the file TARGET
 *   y                writes everything to the disks
 *   M NIC MAC        the same, but the IPv4 address stays
 *   w NIC MILLIS     waits until IPv4 has a way out by the network interface, at most so long; never fails
 *
 * Exits with the number of lines that failed. No library, one page; tests/guest/test_awaken.py builds it.
 */
typedef unsigned long size;

static long call(long number, long a, long b, long c, long d, long e) {
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
    return result;
}

enum { READ = 0, WRITE = 1, OPEN = 2, CLOSE = 3, IOCTL = 16, NANOSLEEP = 35, SOCKET = 41, EXIT = 60, SYNC = 162, MOUNT = 165, SETHOSTNAME = 170, CLOCK_SETTIME = 227 };
enum { RNDADDENTROPY = 0x40085203, RNDRESEEDCRNG = 0x5207 };
enum { SET_ADDRESS = 0x8924, SET_IPV4 = 0x8916, ETHER = 1, INTERNET = 2, BIND = 4096 };

static char input[8192];

static size length(const char *text) {
    size n = 0;
    while (text[n]) n++;
    return n;
}

static long number(const char *text) {
    long value = 0;
    while (*text >= '0' && *text <= '9') value = value * 10 + (*text++ - '0');
    return value;
}

static int digit(char c) { return c <= '9' ? c - '0' : (c | 32) - 'a' + 10; }

static char *word(char **rest) {
    char *start = *rest;
    while (**rest && **rest != ' ') (*rest)++;
    if (**rest) *(*rest)++ = 0;
    return start;
}

static int seed(const char *text) {
    struct { int bits, bytes; char data[512]; } pool;
    size n = length(text);
    if (n > sizeof pool.data) n = sizeof pool.data;
    for (size i = 0; i < n; i++) pool.data[i] = text[i];
    pool.bytes = n;
    pool.bits = n * 4; /* hexadecimal digits */
    long file = call(OPEN, (long)"/dev/urandom", 2, 0, 0, 0);
    if (file < 0) return 1;
    int failed = call(IOCTL, file, RNDADDENTROPY, (long)&pool, 0, 0) < 0;
    failed |= call(IOCTL, file, RNDRESEEDCRNG, 0, 0, 0) < 0;
    call(CLOSE, file, 0, 0, 0, 0);
    return failed;
}

/* The time given was true a moment ago; the real-time clock is true now, but counts whole seconds. */
static int set_time(long seconds, long nanos) {
    char text[32] = {0};
    long file = call(OPEN, (long)"/sys/class/rtc/rtc0/since_epoch", 0, 0, 0, 0);
    if (file >= 0 && call(READ, file, (long)text, sizeof text - 1, 0, 0) > 0) {
        long clock = number(text);
        if (clock > seconds && clock < seconds + 3600) seconds = clock, nanos = 500000000;
    }
    long time[2] = {seconds, nanos};
    return call(CLOCK_SETTIME, 0, (long)time, 0, 0, 0) < 0;
}

/* Off and on again, IPv6 makes its link-local address anew, from the address that is there then. */
static void switch_ipv6(const char *nic, const char *off) {
    char path[64] = "/proc/sys/net/ipv6/conf/";
    size n = length(path);
    for (int i = 0; i < 15 && nic[i]; i++) path[n++] = nic[i];
    for (const char *c = "/disable_ipv6"; *c; c++) path[n++] = *c;
    long file = call(OPEN, (long)path, 1, 0, 0, 0);
    if (file < 0) return;
    call(WRITE, file, (long)off, 1, 0, 0);
    call(CLOSE, file, 0, 0, 0, 0);
}

static int set_address(const char *nic, const char *mac, int keep) {
    struct { char name[16]; union { struct { unsigned short family; unsigned char address[14]; } hardware; char room[24]; } u; } request = {0};
    for (int i = 0; i < 15 && nic[i]; i++) request.name[i] = nic[i];
    long handle = call(SOCKET, 2, 2, 0, 0, 0);
    if (handle < 0) return 1;
    switch_ipv6(nic, "1");
    request.u.hardware.family = INTERNET; /* 0.0.0.0 removes what it has; having none is no failure */
    if (!keep) call(IOCTL, handle, SET_IPV4, (long)&request, 0, 0);
    request.u.hardware.family = ETHER;
    for (int i = 0; i < 6; i++) request.u.hardware.address[i] = digit(mac[2 * i]) * 16 + digit(mac[2 * i + 1]);
    int failed = call(IOCTL, handle, SET_ADDRESS, (long)&request, 0, 0) < 0;
    switch_ipv6(nic, "0");
    call(CLOSE, handle, 0, 0, 0, 0);
    return failed;
}

static int has_route(const char *nic) {
    static char table[4096];
    long file = call(OPEN, (long)"/proc/net/route", 0, 0, 0, 0);
    if (file < 0) return 0;
    long got = call(READ, file, (long)table, sizeof table - 1, 0, 0);
    call(CLOSE, file, 0, 0, 0, 0);
    table[got < 0 ? 0 : got] = 0;
    size n = length(nic);
    for (char *line = table; *line;) {
        size i = 0;
        while (i < n && line[i] == nic[i]) i++;
        if (i == n && line[n] == '\t') {
            const char *everywhere = "00000000\t";
            for (i = 0; everywhere[i] && line[n + 1 + i] == everywhere[i]; i++) {}
            if (!everywhere[i]) return 1;
        }
        while (*line && *line++ != '\n') {}
    }
    return 0;
}

static int wait_route(const char *nic, long millis) {
    long pause[2] = {0, 20000000};
    for (; millis > 0 && !has_route(nic); millis -= 20) call(NANOSLEEP, (long)pause, 0, 0, 0, 0);
    return 0;
}

static int act(char *line) {
    char *rest = line, *what = word(&rest), *first = what[0] == 's' ? rest : word(&rest);
    switch (what[0]) {
    case 's': return seed(first);
    case 't': return set_time(number(first), number(rest));
    case 'h': return call(SETHOSTNAME, (long)first, length(first), 0, 0, 0) < 0;
    case 'm': return length(rest) != 12 || set_address(first, rest, 0);
    case 'M': return length(rest) != 12 || set_address(first, rest, 1);
    case 'b': return call(MOUNT, (long)first, (long)rest, 0, BIND, 0) < 0;
    case 'w': return wait_route(first, number(rest));
    case 'y': return call(SYNC, 0, 0, 0, 0, 0) < 0;
    }
    return 1;
}

__attribute__((force_align_arg_pointer)) void _start(void) {
    size filled = 0;
    long got;
    while (filled < sizeof input - 1 && (got = call(READ, 0, (long)(input + filled), sizeof input - 1 - filled, 0, 0)) > 0) filled += got;
    int failed = 0;
    for (char *line = input; *line;) {
        char *end = line;
        while (*end && *end != '\n') end++;
        int last = !*end;
        *end = 0;
        if (*line) failed += act(line);
        if (last) break;
        line = end + 1;
    }
    call(EXIT, failed, 0, 0, 0, 0);
}
