/*
 * Makes a resumed copy a machine of its own: waits in the guest from before the template is saved until its copy is told who it is.
 *
 * It was started, loaded and is waiting when the copy begins to run, and starts nothing: inside an emulated guest each start of a
 * program takes as long as all of this together. It reads lines, a letter and its words each, and does them in order:
 *
 *   n MAC            the network interface with this hardware address is the one meant below; where there is none this is
 *                    another machine than was thought, and nothing more is done
 *   s TEXT           adds TEXT to the kernel's random pool as entropy and reseeds its generator at once
 *   t SECONDS NANOS LAG  sets the clock: to the time given, or to the real-time clock's where that has gone on meanwhile;
 *                    LAG: nanoseconds by which that one is behind, empty where it shows another time
 *   h NAME           sets the hostname
 *   H NAME FILE      has FILE, which is like /etc/hosts, lead from 127.0.1.1 to NAME
 *   m MAC            gives the interface another hardware address (12 hexadecimal digits), takes away what it had under the old
 *                    one, its IPv4 and IPv6 addresses, and has it tell its neighbours when it gets others
 *   M MAC            gives it another hardware address on the same network: all stays but the IPv6 addresses that come from the old one
 *   a ADDRESS MASK GATEWAY  gives it an IPv4 address and, where the gateway is not 0, a way out (8 hexadecimal digits each)
 *   w MILLIS         waits until IPv4 has a way out by the interface, at most so long; never fails
 *   l MILLIS PATH    where PATH is there: waits until SSH listens, at most so long; never fails
 *   d MODE PATH      makes a folder, where it is not there yet
 *   f MODE LENGTH PATH   writes a file: so many bytes follow, and a newline
 *   o MODE LENGTH PATH   the same, where its folder is there
 *   e MODE LENGTH PATH   the same, where the file is there already
 *   b SOURCE TARGET  binds the file SOURCE over the file TARGET
 *   B SOURCE TARGET  the same, where TARGET is there
 *   j FILE NEW PLACE    moves what in PLACE is named by the first word of FILE to the name NEW, where both are there
 *   k FILE           kills the processes whose numbers FILE holds, but not itself
 *   x LENGTH PATH    where PATH is there: runs a shell script; so many bytes follow, and a newline
 *   z LENGTH SECONDS PATH  the same, after so many seconds, in a process of its own that nobody waits for
 *   y                writes everything to the disks
 *
 * With an argument, a virtio port that it opens and waits at: eight digits come first, the length of all lines. Without one: all that
 * standard input has. Answers what failed, then `awake FAILED LISTENS`: how many lines failed, and 1 where SSH listens, else 0.
 * No library; tests/guest/test_awaken.py builds it.
 */
typedef unsigned long size;

static long call(long number, long a, long b, long c, long d, long e) {
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
    return result;
}

enum { READ = 0, WRITE = 1, OPEN = 2, CLOSE = 3, ACCESS = 21, IOCTL = 16, DUP2 = 33, NANOSLEEP = 35, GETPID = 39, SOCKET = 41, FORK = 57, EXECVE = 59, EXIT = 60, WAIT4 = 61,
       KILL = 62, RENAME = 82, MKDIR = 83, UMASK = 95, SETSID = 112, SYNC = 162, MOUNT = 165, SETHOSTNAME = 170, CLOCK_SETTIME = 227 };
enum { WRONLY = 1, RDWR = 2, CREAT = 0100, TRUNC = 01000, CLOEXEC = 02000000, NOENT = 2, EXIST = 17 };
enum { RNDADDENTROPY = 0x40085203, RNDRESEEDCRNG = 0x5207 };
enum { GET_NAME = 0x8910, GET_MAC = 0x8927, SET_MAC = 0x8924, SET_ADDRESS = 0x8916, DELETE_ADDRESS = 0x8936, SET_MASK = 0x891c, ADD_ROUTE = 0x890b };
enum { ROUTE_BY_GATEWAY = 3, ETHER = 1, INTERNET = 2, INTERNET6 = 10, LINK_LOCAL = 0x20, PERMANENT = 0x80, BIND = 4096 };

enum { MOST = 4194304 }; /* bytes of a file or of all lines; what is not used of it costs no memory */
static char input[MOST];
static char nic[16];
static char table[MOST]; /* of the kernel's, or another file's text */
static int answers; /* where what failed is told */

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

static long octal(const char *text) {
    long value = 0;
    while (*text >= '0' && *text <= '7') value = value * 8 + (*text++ - '0');
    return value;
}

static size join(char *to, size n, size room, const char *text) {
    while (*text && n < room - 1) to[n++] = *text++;
    to[n] = 0;
    return n;
}

static int same(const char *a, const char *b) {
    while (*a && *a == *b) a++, b++;
    return *a == *b;
}

static void tell(const char *text) { call(WRITE, answers, (long)text, length(text), 0, 0); }

static void pause(long seconds, long nanos) {
    long time[2] = {seconds, nanos};
    call(NANOSLEEP, (long)time, 0, 0, 0, 0);
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

/* How many bytes were read into room; the rest of it is left as it is. A file that is not there has none. */
static long read_file(const char *path, char *room, size most) {
    long file = call(OPEN, (long)path, CLOEXEC, 0, 0, 0), got = 0;
    size n = 0;
    if (file < 0) return file;
    while (n < most && (got = call(READ, file, (long)(room + n), most - n, 0, 0)) > 0) n += got;
    call(CLOSE, file, 0, 0, 0, 0);
    return got < 0 ? got : (long)n;
}

static int write_file(const char *path, long flags, long mode, const char *data, size n) {
    long file = call(OPEN, (long)path, WRONLY | TRUNC | CLOEXEC | flags, mode, 0, 0), put = 0;
    if (file < 0) return -file;
    for (size at = 0; at < n; at += put)
        if ((put = call(WRITE, file, (long)(data + at), n - at, 0, 0)) <= 0) break;
    call(CLOSE, file, 0, 0, 0, 0);
    return put < 0 ? -put : 0;
}

/* Seconds since 1970 by the real-time clock, -1 when it does not tell. */
static long read_clock(void) {
    char text[32] = {0};
    return read_file("/sys/class/rtc/rtc0/since_epoch", text, sizeof text - 1) > 0 ? number(text) : -1;
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

static int find_nic(const char *mac) {
    struct { char name[16]; union { int index; struct { unsigned short family; unsigned char address[14]; } hardware; char room[24]; } u; } request = {0};
    long handle = call(SOCKET, 2, 2, 0, 0, 0);
    int found = 0;
    for (int index = 1; index < 1024 && !found; index++) {
        request.u.index = index;
        if (call(IOCTL, handle, GET_NAME, (long)&request, 0, 0) < 0 || call(IOCTL, handle, GET_MAC, (long)&request, 0, 0) < 0) continue;
        found = request.u.hardware.family == ETHER;
        for (int i = 0; i < 6; i++) found &= request.u.hardware.address[i] == digit(mac[2 * i]) * 16 + digit(mac[2 * i + 1]);
    }
    call(CLOSE, handle, 0, 0, 0, 0);
    if (found) join(nic, 0, sizeof nic, request.name);
    return !found;
}

/* Sets what the kernel keeps for the interface. */
static void set_kept(const char *family, const char *what, const char *value) {
    char path[96];
    size n = join(path, 0, sizeof path, "/proc/sys/net/");
    n = join(path, n, sizeof path, family);
    n = join(path, n, sizeof path, "/conf/");
    n = join(path, n, sizeof path, nic);
    join(path, n, sizeof path, what);
    write_file(path, 0, 0, value, 1);
}

static long hexadecimal(char **rest) {
    long value = 0;
    for (const char *text = word(rest); *text; text++) value = value * 16 + digit(*text);
    while (**rest == ' ') (*rest)++;
    return value;
}

/* Takes away the IPv6 addresses that come from the hardware address, and gives the link-local one of the new: having it the kernel asks for
   routers again, and so for the others. Switching IPv6 off and on does that too, but makes a busy guest wait for a second or two. */
static void renew_ipv6(const char *mac) {
    struct { unsigned char address[16]; unsigned length; int index; } request = {0};
    int had = 0;
    long handle = call(SOCKET, INTERNET6, 2, 0, 0, 0), got = read_file("/proc/net/if_inet6", table, sizeof table - 1);
    table[got < 0 ? 0 : got] = 0;
    for (char *line = table; *line;) {
        char *rest = line;
        while (*line && *line++ != '\n') {}
        if (line > rest) line[-1] = 0;
        char *address = word(&rest);
        request.index = hexadecimal(&rest);
        request.length = hexadecimal(&rest);
        long scope = hexadecimal(&rest), flags = hexadecimal(&rest);
        if (!same(rest, nic) || (scope != LINK_LOCAL && flags & PERMANENT)) continue;
        for (int i = 0; i < 16; i++) request.address[i] = digit(address[2 * i]) * 16 + digit(address[2 * i + 1]);
        call(IOCTL, handle, DELETE_ADDRESS, (long)&request, 0, 0);
        if (scope == LINK_LOCAL) had = request.index;
    }
    if (had) { /* RFC 4291, appendix A */
        unsigned char *to = request.address;
        for (int i = 0; i < 16; i++) to[i] = 0;
        for (int i = 0; i < 6; i++) to[i < 3 ? 8 + i : 10 + i] = digit(mac[2 * i]) * 16 + digit(mac[2 * i + 1]);
        to[0] = 0xfe, to[1] = 0x80, to[8] ^= 2, to[11] = 0xff, to[12] = 0xfe;
        request.length = 64, request.index = had;
        call(IOCTL, handle, SET_ADDRESS, (long)&request, 0, 0);
    }
    call(CLOSE, handle, 0, 0, 0, 0);
}

static int set_address(const char *mac, int same_network) {
    struct { char name[16]; union { struct { unsigned short family; unsigned char address[14]; } hardware; char room[24]; } u; } request = {0};
    join(request.name, 0, sizeof request.name, nic);
    long handle = call(SOCKET, 2, 2, 0, 0, 0);
    if (handle < 0) return -handle;
    set_kept("ipv4", "/arp_notify", "1");
    if (!same_network) set_kept("ipv6", "/disable_ipv6", "1"); /* off and on again, it makes its link-local address anew, from the address that is there then */
    request.u.hardware.family = INTERNET; /* 0.0.0.0 removes what it has; having none is no failure */
    if (!same_network) call(IOCTL, handle, SET_ADDRESS, (long)&request, 0, 0);
    request.u.hardware.family = ETHER;
    for (int i = 0; i < 6; i++) request.u.hardware.address[i] = digit(mac[2 * i]) * 16 + digit(mac[2 * i + 1]);
    long failed = call(IOCTL, handle, SET_MAC, (long)&request, 0, 0);
    if (same_network) renew_ipv6(mac);
    else set_kept("ipv6", "/disable_ipv6", "0");
    call(CLOSE, handle, 0, 0, 0, 0);
    return -failed;
}

struct place { unsigned short family, port; unsigned char address[4]; char room[8]; };

static void parse(struct place *place, const char *digits) {
    place->family = INTERNET;
    for (int i = 0; i < 4; i++) place->address[i] = digit(digits[2 * i]) * 16 + digit(digits[2 * i + 1]);
}

static int set_ipv4(const char *address, char *rest) {
    struct { char name[16]; struct place place; char room[8]; } request = {0};
    struct { long pad1; struct place target, gateway, mask; short flags, pad2; long pad3[2]; short metric; char *device; long more[3]; } route = {0};
    char *mask = word(&rest), *gateway = rest;
    if (length(address) != 8 || length(mask) != 8) return 1;
    long handle = call(SOCKET, 2, 2, 0, 0, 0);
    if (handle < 0) return -handle;
    join(request.name, 0, sizeof request.name, nic);
    parse(&request.place, address);
    int failed = call(IOCTL, handle, SET_ADDRESS, (long)&request, 0, 0) < 0;
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

static int has_route(void) {
    long got = read_file("/proc/net/route", table, sizeof table - 1);
    table[got < 0 ? 0 : got] = 0;
    size n = length(nic);
    for (char *line = table; *line;) {
        size i = 0;
        while (i < n && line[i] == nic[i]) i++;
        if (n && i == n && line[n] == '\t') {
            const char *everywhere = "00000000\t";
            for (i = 0; everywhere[i] && line[n + 1 + i] == everywhere[i]; i++) {}
            if (!everywhere[i]) return 1;
        }
        while (*line && *line++ != '\n') {}
    }
    return 0;
}

static int wait_route(long millis) {
    for (; millis > 0 && !has_route(); millis -= 20) pause(0, 20000000);
    return 0;
}

/* Whether anybody waits for calls at the port of SSH: `NUMBER: ADDRESS:0016 ADDRESS:PORT 0A` in the kernel's table. */
static int ssh_listens(const char *path) {
    long got = read_file(path, table, sizeof table - 1);
    table[got < 0 ? 0 : got] = 0;
    for (char *line = table; *line;) {
        char *rest = line, *words[4];
        while (*line && *line++ != '\n') {}
        if (line > rest) line[-1] = 0;
        for (int i = 0; i < 4; i++) {
            while (*rest == ' ') rest++;
            words[i] = word(&rest);
        }
        size n = length(words[1]);
        if (n > 5 && words[1][n - 5] == ':' && number(words[1] + n - 4) == 16 && words[3][0] == '0' && words[3][1] == 'A') return 1;
    }
    return 0;
}

static int listens(void) { return ssh_listens("/proc/net/tcp") || ssh_listens("/proc/net/tcp6"); }

static int wait_listens(long millis, const char *path) {
    if (call(ACCESS, (long)path, 0, 0, 0, 0) < 0) return 0;
    for (; millis > 0 && !listens(); millis -= 10) pause(0, 10000000);
    return 0;
}

static int name_host(const char *name, const char *path) {
    static char text[MOST];
    size n = join(text, 0, sizeof text, "127.0.1.1 ");
    n = join(text, n, sizeof text, name);
    n = join(text, n, sizeof text, "\n");
    long got = read_file(path, table, sizeof table - 1);
    if (got >= (long)sizeof table - 1 - 300) return 27;
    table[got < 0 ? 0 : got] = 0;
    for (char *line = table; *line;) {
        char *start = line, *rest = line;
        while (*line && *line++ != '\n') {}
        const char *own = "127.0.1.1";
        while (*own && *rest == *own) rest++, own++;
        if (!*own && (*rest == ' ' || *rest == '\t')) continue;
        while (start < line) text[n++] = *start++;
    }
    if (text[n - 1] != '\n') text[n++] = '\n';
    return write_file(path, CREAT, 0644, text, n);
}

static int move_journal(const char *file, const char *name, const char *place) {
    char old[64] = {0}, from[160], to[160];
    read_file(file, old, sizeof old - 1);
    for (char *c = old; *c; c++)
        if (*c <= ' ') *c = 0;
    size n = join(from, 0, sizeof from, place);
    join(from, join(from, n, sizeof from, "/"), sizeof from, old);
    n = join(to, 0, sizeof to, place);
    join(to, join(to, n, sizeof to, "/"), sizeof to, name);
    if (!old[0]) return 0;
    long failed = call(RENAME, (long)from, (long)to, 0, 0, 0);
    return failed == -NOENT ? 0 : -failed;
}

static int kill_all(const char *file) {
    long got = read_file(file, table, sizeof table - 1);
    long self = call(GETPID, 0, 0, 0, 0, 0);
    table[got < 0 ? 0 : got] = 0;
    for (char *at = table; *at;) {
        long pid = number(at);
        if (pid > 1 && pid != self) call(KILL, pid, 9, 0, 0, 0); /* one that is gone is no failure */
        while (*at && *at++ != '\n') {}
    }
    return got < 0 ? -got : 0;
}

/* In a child: becomes a shell with this script, which it may be told to wait for, far from everybody. */
static void shell(char *script, long seconds, int apart) {
    char *words[] = {"/bin/sh", "-c", script, 0}, *about[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", 0};
    long none = call(OPEN, (long)"/dev/null", RDWR, 0, 0, 0);
    call(DUP2, none, 0, 0, 0, 0);
    call(DUP2, apart ? none : answers, 1, 0, 0, 0);
    call(DUP2, apart ? none : answers, 2, 0, 0, 0);
    for (int handle = 3; handle < 16; handle++) call(CLOSE, handle, 0, 0, 0, 0);
    if (apart) {
        call(SETSID, 0, 0, 0, 0, 0);
        pause(seconds, 0);
    }
    call(EXECVE, (long)words[0], (long)words, (long)about, 0, 0);
    call(EXIT, 127, 0, 0, 0, 0);
}

static int run(char *script, const char *path, long seconds, int apart) {
    int status = 0;
    if (call(ACCESS, (long)path, 0, 0, 0, 0) < 0) return 0;
    long child = call(FORK, 0, 0, 0, 0, 0);
    if (child < 0) return -child;
    if (!child) shell(script, seconds, apart);
    if (!apart && call(WAIT4, child, (long)&status, 0, 0, 0) < 0) return 1;
    return status >> 8 ? status >> 8 : status;
}

static int bind(const char *source, const char *target, int must) {
    if (!must && call(ACCESS, (long)target, 0, 0, 0, 0) < 0) return 0;
    return -call(MOUNT, (long)source, (long)target, 0, BIND, 0);
}

/* `about` is what a failure is told of, `data` where the next line begins: those of some lines are followed by bytes. */
static int act(char *line, char **about, char **data, char *end) {
    char *rest = line, *what = word(&rest);
    if (length(what) != 1) return 1;
    if (what[0] == 's') return seed(rest);
    char *first = word(&rest);
    *about = first;
    switch (what[0]) {
    case 'n': return length(first) != 12 || find_nic(first);
    case 't': return set_time(number(first), rest);
    case 'h': return -call(SETHOSTNAME, (long)first, length(first), 0, 0, 0);
    case 'H': return name_host(first, *about = rest);
    case 'm': return length(first) != 12 || set_address(first, 0);
    case 'M': return length(first) != 12 || set_address(first, 1);
    case 'a': return set_ipv4(first, rest);
    case 'w': return wait_route(number(first));
    case 'l': return wait_listens(number(first), rest);
    case 'b': return bind(first, rest, 1);
    case 'B': return bind(first, rest, 0);
    case 'k': return kill_all(first);
    case 'y': return call(SYNC, 0, 0, 0, 0, 0) < 0;
    case 'j': {
        char *name = word(&rest);
        return move_journal(first, name, *about = rest);
    }
    case 'd': {
        long failed = call(MKDIR, (long)(*about = rest), octal(first), 0, 0, 0);
        return failed == -EXIST ? 0 : -failed;
    }
    case 'f': case 'o': case 'e': case 'x': case 'z': {
        int script = what[0] == 'x' || what[0] == 'z';
        char *second = what[0] == 'x' ? "" : word(&rest), *bytes = *data;
        size n = number(script ? first : second);
        *about = rest;
        if (n >= (size)(end - bytes)) return *data = end, 1;
        *data = bytes + n + 1;
        bytes[n] = 0;
        if (script) return run(bytes, rest, number(second), what[0] == 'z');
        int failed = write_file(rest, what[0] == 'e' ? 0 : CREAT, octal(first), bytes, n);
        return failed == NOENT && what[0] != 'f' ? 0 : failed;
    }
    }
    return 1;
}

static void tell_failure(const char *line, const char *about, int why) {
    char text[160], digits[12];
    int at = sizeof digits - 1;
    digits[at] = 0;
    for (unsigned rest = why; at > 0 && (rest || at == sizeof digits - 1); rest /= 10) digits[--at] = '0' + rest % 10;
    size n = join(text, 0, sizeof text - 16, line[0] == 'n' ? "it has no network interface " : "it failed: ");
    if (line[0] != 'n' && line[1] <= ' ') text[n++] = line[0], text[n++] = ' ', text[n] = 0;
    n = join(text, n, sizeof text - 16, about);
    n = join(text, n, sizeof text, ", ");
    n = join(text, n, sizeof text, digits + at);
    join(text, n, sizeof text, "\n");
    tell(text);
}

/* Reads so many bytes, or up to the end. A port whose other end is closed has an end, and later goes on. */
static long fill(long from, size wanted, int waits) {
    size n = 0;
    while (n < wanted) {
        long got = call(READ, from, (long)(input + n), wanted - n, 0, 0);
        if (got > 0) n += got;
        else if (!waits) break;
        else pause(0, 5000000);
    }
    return n;
}

static int obey(size filled) {
    char *end = input + filled;
    int failed = 0;
    *end = 0;
    for (char *line = input; line < end;) {
        char *next = line, *about = "";
        while (next < end && *next != '\n') next++;
        *next++ = 0;
        int why = *line ? act(line, &about, &next, end) : 0;
        if (why) failed++, tell_failure(line, about, why);
        line = why && *line == 'n' ? end : next;
    }
    char last[] = "awake 0 0\n";
    last[6] += failed < 9 ? failed : 9;
    last[8] += listens();
    tell(last);
    return failed < 99 ? failed : 99;
}

static int start(long *stack) {
    const size most = sizeof input - 1;
    call(UMASK, 0, 0, 0, 0, 0);
    answers = 1;
    if (stack[0] < 2) return obey(fill(0, most, 0));
    answers = call(OPEN, stack[2], RDWR, 0, 0, 0);
    if (answers < 0) return 1;
    fill(answers, 8, 1);
    input[8] = 0;
    size wanted = number(input);
    return wanted > most ? 1 : obey(fill(answers, wanted, 1));
}

__asm__(".globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call enter\n");

__attribute__((used)) void enter(long *stack) { call(EXIT, start(stack), 0, 0, 0, 0); }
