/*
 * Gives a resumed copy what only system calls can: run in the guest, once, at the end of its identity script.
 *
 * Shell would start a program for each of these, and starting a program inside an emulated guest takes as long as all of them
 * together. Reads lines from standard input, a letter and its words each, and does them in order:
 *
 *   s TEXT           adds TEXT to the kernel's random pool as entropy and reseeds its generator at once
 *   t SECONDS NANOS LAG  sets the clock: to the time given, or to the real-time clock's where that has gone on meanwhile;
 *                    LAG: nanoseconds by which that one is behind, empty where it shows another time
 *   h NAME           sets the hostname
 *   m NIC MAC        gives the network interface another hardware address (12 hexadecimal digits), and takes away what it
 *                    had under the old one: its IPv4 and IPv6 addresses
 *   b SOURCE TARGET  binds the file SOURCE over the file TARGET
 *   y                writes everything to the disks
 *   M NIC MAC        the same, but the IPv4 address stays
 *   a NIC ADDRESS MASK GATEWAY  gives it an IPv4 address and, where the gateway is not 0, a way out (8 hexadecimal digits each)
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
enum { SET_ADDRESS = 0x8924, SET_IPV4 = 0x8916, SET_MASK = 0x891c, ADD_ROUTE = 0x890b, ROUTE_BY_GATEWAY = 3, ETHER = 1, INTERNET = 2, BIND = 4096 };

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

/* Seconds since 1970 by the real-time clock, -1 when it does not tell. */
static long read_clock(void) {
    char text[32] = {0};
    long file = call(OPEN, (long)"/sys/class/rtc/rtc0/since_epoch", 0, 0, 0, 0);
    if (file < 0) return -1;
    long got = call(READ, file, (long)text, sizeof text - 1, 0, 0);
    call(CLOSE, file, 0, 0, 0, 0);
    return got > 0 ? number(text) : -1;
}

/* The time given was true a moment ago; the real-time clock is true now, but counts whole seconds: the middle of what it can be.
   Again when its second was over before the deed was done, for nobody knows then how long we waited in between. */
static int set_time(long seconds, char *rest) {
    const long second = 1000000000, given = seconds * second + number(word(&rest));
    for (int tries = 0; tries < 8; tries++) {
        long now = given, clock = *rest ? read_clock() : -1, least = clock * second + number(rest), most = least + second;
        if (clock >= 0 && most > given && most < given + 3600 * second) now = (least > given ? least : given) / 2 + most / 2;
        long time[2] = {now / second, now % second};
        if (call(CLOCK_SETTIME, 0, (long)time, 0, 0, 0) < 0) return 1;
        if (read_clock() == clock) break;
    }
    return 0;
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

struct place { unsigned short family, port; unsigned char address[4]; char room[8]; };

static void parse(struct place *place, const char *digits) {
    place->family = INTERNET;
    for (int i = 0; i < 4; i++) place->address[i] = digit(digits[2 * i]) * 16 + digit(digits[2 * i + 1]);
}

static int set_ipv4(const char *nic, char *rest) {
    struct { char name[16]; struct place place; char room[8]; } request = {0};
    struct { long pad1; struct place target, gateway, mask; short flags, pad2; long pad3[2]; short metric; char *device; long more[3]; } route = {0};
    char *address = word(&rest), *mask = word(&rest), *gateway = rest;
    if (length(address) != 8 || length(mask) != 8) return 1;
    long handle = call(SOCKET, 2, 2, 0, 0, 0);
    if (handle < 0) return 1;
    for (int i = 0; i < 15 && nic[i]; i++) request.name[i] = nic[i];
    parse(&request.place, address);
    int failed = call(IOCTL, handle, SET_IPV4, (long)&request, 0, 0) < 0;
    parse(&request.place, mask);
    failed |= call(IOCTL, handle, SET_MASK, (long)&request, 0, 0) < 0;
    if (length(gateway) == 8) {
        route.target.family = route.mask.family = INTERNET;
        parse(&route.gateway, gateway);
        route.flags = ROUTE_BY_GATEWAY;
        failed |= call(IOCTL, handle, ADD_ROUTE, (long)&route, 0, 0) < 0;
    }
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
    case 't': return set_time(number(first), rest);
    case 'h': return call(SETHOSTNAME, (long)first, length(first), 0, 0, 0) < 0;
    case 'm': return length(rest) != 12 || set_address(first, rest, 0);
    case 'a': return set_ipv4(first, rest);
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
