/*
 * Runs a command in the guest whose input and output are streams, for guest/relay.py, which speaks through the guest agent: that one can only
 * read and write files. So streams are three files in a folder that is root's alone, which this program unlinks as soon as it has opened them:
 *
 *   NAME.in     the command's standard input, as it is
 *   NAME.ctl    records of nine bytes, a letter and a number (little endian): `a` so many bytes of NAME.out were read, `s` send this
 *               signal, `w` the terminal has so many rows * 65536 + columns, `z` the input ends after so many bytes, `h` nothing new
 *   NAME.out    what it says: a letter, four bytes of length, and as much: `o` output, `e` errors, `t` how much of the input was taken
 *               (8 bytes), `x` its end (4 bytes of status as shells count, 8 bytes of how much input nobody read), `f` the errno for which
 *               it could not be started (4 bytes). After `x` or `f` comes nothing.
 *
 * What was read is given back to the filesystem (holes are punched), and no more than WINDOW bytes lie unread: then the command waits. Where no
 * record came for SILENCE seconds whoever started it is gone; the command is ended then, as it is when signal 0 is asked for.
 *
 *   relay NAME p|t TERM COMMAND...     p: input, output and errors are pipes; t: they are a terminal.
 *   relay                              ends with 0: it can be run here.
 *
 * No library; tests/guest/test_relay.py builds it.
 */
typedef unsigned long size;
typedef unsigned char byte;

static long call(long number, long a, long b, long c, long d, long e) {
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
    return result;
}

enum { READ = 0, WRITE = 1, OPEN = 2, CLOSE = 3, FSTAT = 5, POLL = 7, SIGACTION = 13, SIGPROCMASK = 14, IOCTL = 16, PREAD = 17, DUP2 = 33, NANOSLEEP = 35,
       FORK = 57, EXECVE = 59, EXIT = 60, WAIT4 = 61, KILL = 62, FCNTL = 72, UNLINK = 87, SETSID = 112, CLOCK_GETTIME = 228, FALLOCATE = 285,
       SIGNALFD4 = 289, PIPE2 = 293, INOTIFY_INIT1 = 294, INOTIFY_ADD_WATCH = 254 };
enum { RDWR = 2, WRONLY = 1, APPEND = 02000, NOCTTY = 0400, NONBLOCK = 04000, CLOEXEC = 02000000 };
enum { EAGAIN = 11, ENOENT = 2, ENOEXEC = 8, EACCES = 13, ENOTDIR = 20, ENOSPC = 28 };
enum { UNLOCK_TERMINAL = 0x40045431, OPEN_PEER = 0x5441, TAKE_TERMINAL = 0x540e, SET_SIZE = 0x5414, UNREAD = 0x541b };
enum { CAN_READ = 1, CAN_WRITE = 4, HUNG_UP = 16, ANY_ERROR = 8 };
enum { KEEP_SIZE = 1, PUNCH_HOLE = 2, MODIFIED = 2, NO_HANG = 1, CHILD_ENDED = 17, MONOTONIC = 1 };
enum { PIECE = 65536, WINDOW = 2097152, PUNCHED_AT = 262144, SILENCE = 120, GRACE = 2, QUIET = 4, RECORD = 9 };

struct poll { int fd; short events, found; };

static byte piece[PIECE + 8];
static char name[4096];
static char *environment[1024];
static char terminal[256], path[4096];
static int in, ctl, out, signals, changes;
static int feed = -1, unread_at = -1; /* the command's input: where it is written, where what nobody read is counted */
static int sources[2] = {-1, -1};     /* its output and its errors; a terminal has but one */
static size taken, told, punched_in, said, read_of_said, punched_out, seen_ctl;
static long ends_at = -1; /* bytes of input after which it ends */
static long child, status = -1, heard, ending;
static int is_terminal;

static size length(const char *text) {
    size n = 0;
    while (text[n]) n++;
    return n;
}

static int begins(const char *text, const char *with) {
    while (*with)
        if (*text++ != *with++) return 0;
    return 1;
}

static long now(void) {
    long moment[2];
    call(CLOCK_GETTIME, MONOTONIC, (long)moment, 0, 0, 0);
    return moment[0];
}

static void rest(long nanoseconds) {
    long pause[2] = {0, nanoseconds};
    call(NANOSLEEP, (long)pause, 0, 0, 0, 0);
}

static void leave(int with) {
    for (;;) call(EXIT, with, 0, 0, 0, 0);
}

static void put(byte *to, size value, int many) {
    while (many--) {
        *to++ = value;
        value >>= 8;
    }
}

static size get(const byte *from, int many) {
    size value = 0;
    while (many--) value = value << 8 | from[many];
    return value;
}

static long size_of(int handle) {
    long facts[18];
    return call(FSTAT, handle, (long)facts, 0, 0, 0) < 0 ? 0 : facts[6];
}

static void signal(long number) {
    if (child > 0) call(KILL, -child, number, 0, 0, 0);
}

/* Whoever started this is gone, or wants it gone: its terminal hangs up, then it is killed. */
static void end(void) {
    if (ending) return;
    ending = now() + GRACE;
    signal(1);
    signal(15);
}

/* Records that came; each is written as a whole or not yet. */
static void obey(void) {
    byte record[RECORD];
    while (call(PREAD, ctl, (long)record, RECORD, seen_ctl, 0) == RECORD) {
        size value = get(record + 1, 8);
        if (record[0] == 's' && !child) return; /* as soon as there is one */
        seen_ctl += RECORD;
        heard = now();
        if (record[0] == 'a') read_of_said = value;
        else if (record[0] == 'z') ends_at = value;
        else if (record[0] == 's' && value) signal(value);
        else if (record[0] == 's') end();
        else if (record[0] == 'w' && is_terminal) {
            unsigned short shape[4] = {value >> 16, value, 0, 0};
            call(IOCTL, feed, SET_SIZE, (long)shape, 0, 0);
        }
    }
    if (read_of_said - punched_out >= PUNCHED_AT && read_of_said <= said) {
        call(FALLOCATE, out, KEEP_SIZE | PUNCH_HOLE, punched_out, read_of_said - punched_out, 0);
        punched_out = read_of_said;
    }
    if (now() - heard > SILENCE) end();
}

static void say_bytes(const byte *text, size n) {
    while (n) {
        long wrote = call(WRITE, out, (long)text, n, 0, 0);
        if (wrote > 0) {
            text += wrote;
            n -= wrote;
            said += wrote;
        } else { /* the filesystem is full: until what was read is given back */
            rest(20000000);
            obey();
            if (ending && now() > ending) leave(1);
        }
    }
}

static void say(byte kind, const byte *text, size n) {
    byte head[5] = {kind};
    put(head + 1, n, 4);
    say_bytes(head, 5);
    say_bytes(text, n);
}

static void say_taken(void) {
    byte text[8];
    told = taken;
    put(text, taken, 8);
    say('t', text, 8);
}

static void close_feed(void) {
    if (feed >= 0 && !is_terminal) call(CLOSE, feed, 0, 0, 0, 0);
    feed = -1;
}

/* Hand on what came of the input, as much as the command takes. */
static void pass_in(void) {
    while (feed >= 0 && status < 0) {
        long most = size_of(in) - (long)taken;
        if (ends_at >= 0 && (long)taken + most >= ends_at) most = ends_at - (long)taken;
        if (most <= 0) break;
        long got = call(PREAD, in, (long)piece, most < PIECE ? most : PIECE, taken, 0);
        if (got <= 0) break;
        long wrote = call(WRITE, feed, (long)piece, got, 0, 0);
        if (wrote <= 0) break;
        taken += wrote;
        if (wrote < got) break;
    }
    if (feed >= 0 && ends_at >= 0 && (long)taken >= ends_at) {
        if (!is_terminal) close_feed();
        else {
            byte end_of_text = 4;
            if (call(WRITE, feed, (long)&end_of_text, 1, 0, 0) == 1) ends_at = -1;
        }
    }
    if (taken - punched_in >= PUNCHED_AT) {
        call(FALLOCATE, in, KEEP_SIZE | PUNCH_HOLE, punched_in, taken - punched_in, 0);
        punched_in = taken;
    }
    if (taken - told >= PIECE) say_taken();
}

/* Pass on what one source says now; whether it goes on. */
static int pass_out(int number) {
    long got = call(READ, sources[number], (long)piece, PIECE, 0, 0);
    if (got > 0) say(number ? 'e' : 'o', piece, got);
    if (got > 0 || got == -EAGAIN) return got > 0;
    if (!is_terminal) call(CLOSE, sources[number], 0, 0, 0, 0);
    sources[number] = -1;
    return 0;
}

static void reap(void) {
    byte news[128];
    int how = 0;
    while (call(READ, signals, (long)news, sizeof news, 0, 0) > 0) {}
    if (status < 0 && call(WAIT4, child, (long)&how, NO_HANG, 0, 0) == child) status = how & 127 ? 128 + (how & 127) : how >> 8 & 255;
}

static void finish(void) {
    byte text[12];
    int unread = 0;
    if (unread_at >= 0) call(IOCTL, unread_at, UNREAD, (long)&unread, 0, 0);
    if (taken != told) say_taken();
    put(text, status, 4);
    put(text + 4, unread, 8);
    say('x', text, 12);
    leave(0);
}

/* Until the command has ended and all that it said is passed on. Of a terminal that others hold open no more is waited for. */
static void relay(void) {
    byte news[4096];
    for (int quiet = 0;; quiet++) {
        reap();
        while (call(READ, changes, (long)news, sizeof news, 0, 0) > 0) {}
        obey();
        pass_in();
        int open = said - read_of_said < WINDOW, more = 0;
        for (int number = 0; number < 2; number++)
            if (sources[number] >= 0 && open) more |= pass_out(number);
        if (status >= 0 && open && ((sources[0] < 0 && sources[1] < 0) || (is_terminal && quiet > QUIET))) finish();
        if (ending && now() > ending) {
            signal(9);
            if (status >= 0 || now() > ending + GRACE) finish();
        }
        if (more || status < 0 || !open) quiet = 0;
        if (more) continue;
        long waiting = size_of(in) > (long)taken && feed >= 0;
        struct poll wanted[5] = {{signals, CAN_READ, 0}, {changes, CAN_READ, 0}, {open ? sources[0] : -1, CAN_READ, 0},
                                 {open ? sources[1] : -1, CAN_READ, 0}, {waiting && status < 0 ? feed : -1, CAN_WRITE, 0}};
        call(POLL, (long)wanted, 5, ending || status >= 0 ? 50 : 1000, 0, 0);
    }
}

/* Become the command: what has no slash is looked for in PATH. Ends with an errno where that can't be. */
static int become(char **words) {
    const char *places = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", *slash = words[0];
    int why = ENOENT;
    for (char **each = environment; *each; each++)
        if (begins(*each, "PATH=")) places = *each + 5;
    while (*slash && *slash != '/') slash++;
    if (!words[0][0]) return ENOENT;
    do {
        size n = 0;
        if (!*slash) {
            while (*places && *places != ':' && n < sizeof path - 2) path[n++] = *places++;
            while (*places && *places != ':') places++;
            if (!n) path[n++] = '.';
            path[n++] = '/';
        }
        for (const char *letter = words[0]; *letter && n < sizeof path - 1; letter++) path[n++] = *letter;
        path[n] = 0;
        long failed = -call(EXECVE, (long)path, (long)words, (long)environment, 0, 0);
        if (failed == ENOEXEC) {
            words[0] = path;
            words[-1] = "/bin/sh"; /* TERM=... stood there */
            failed = -call(EXECVE, (long)"/bin/sh", (long)(words - 1), (long)environment, 0, 0);
        }
        if (failed != ENOENT && failed != ENOTDIR) why = failed;
    } while (!*slash && *places++);
    return why;
}

static void open_all(const char *of) {
    const char *ends[3] = {".in", ".ctl", ".out"};
    int *handles[3] = {&in, &ctl, &out};
    size n = length(of);
    if (n > sizeof name - 8) leave(2);
    for (int number = 0; number < 3; number++) {
        for (size at = 0; at < n; at++) name[at] = of[at];
        for (size at = 0; at <= length(ends[number]); at++) name[n + at] = ends[number][at];
        *handles[number] = call(OPEN, (long)name, RDWR | CLOEXEC | (number == 2 ? APPEND : 0), 0, 0, 0);
        if (*handles[number] < 0) leave(2);
        if (number < 2) call(INOTIFY_ADD_WATCH, changes, (long)name, MODIFIED, 0, 0);
        call(UNLINK, (long)name, 0, 0, 0, 0);
    }
}

static void run(char **words) {
    int pipes[4][2], mine, theirs = -1, why = 0;
    long none = 0, number = 0;
    for (int each = 0; each < (is_terminal ? 1 : 4); each++)
        if (call(PIPE2, (long)pipes[each], CLOEXEC, 0, 0, 0) < 0) leave(2);
    if (is_terminal) {
        mine = call(OPEN, (long)"/dev/ptmx", RDWR | NOCTTY | CLOEXEC | NONBLOCK, 0, 0, 0);
        if (mine < 0 || call(IOCTL, mine, UNLOCK_TERMINAL, (long)&number, 0, 0) < 0) leave(2);
        theirs = call(IOCTL, mine, OPEN_PEER, RDWR | NOCTTY, 0, 0);
        if (theirs < 0) leave(2);
        feed = sources[0] = mine;
    } else {
        feed = pipes[1][1];
        unread_at = pipes[1][0];
        sources[0] = pipes[2][0];
        sources[1] = pipes[3][0];
    }
    obey(); /* the size of the terminal, before anybody asks for it */
    child = call(FORK, 0, 0, 0, 0, 0);
    if (child < 0) leave(2);
    if (!child) {
        call(SETSID, 0, 0, 0, 0, 0);
        if (is_terminal) call(IOCTL, theirs, TAKE_TERMINAL, 0, 0, 0);
        for (int each = 0; each < 3; each++) call(DUP2, is_terminal ? theirs : pipes[each + 1][each > 0], each, 0, 0, 0);
        if (theirs > 2) call(CLOSE, theirs, 0, 0, 0, 0);
        long as_ever[4] = {0, 0, 0, 0};
        for (int each = 1; each < 32; each++) call(SIGACTION, each, (long)as_ever, 0, 8, 0);
        call(SIGPROCMASK, 2, (long)&none, 0, 8, 0);
        why = become(words);
        call(WRITE, pipes[0][1], (long)&why, sizeof why, 0, 0);
        leave(127);
    }
    call(CLOSE, pipes[0][1], 0, 0, 0, 0);
    if (is_terminal) call(CLOSE, theirs, 0, 0, 0, 0);
    else {
        call(CLOSE, pipes[2][1], 0, 0, 0, 0);
        call(CLOSE, pipes[3][1], 0, 0, 0, 0);
        for (int each = 0; each < 3; each++) call(FCNTL, each ? sources[each - 1] : feed, 4, NONBLOCK, 0, 0);
    }
    if (call(READ, pipes[0][0], (long)&why, sizeof why, 0, 0) == sizeof why) {
        byte text[4];
        put(text, why, 4);
        say('f', text, 4);
        leave(0);
    }
    call(CLOSE, pipes[0][0], 0, 0, 0, 0);
}

__attribute__((used)) static void enter(long *stack) {
    long count = stack[0], blocked = 1L << (CHILD_ENDED - 1), pipe_breaks = 1L << 12;
    char **words = (char **)(stack + 1), **given = words + count + 1;
    size n = 0;
    int home = 0;
    if (count < 5) leave(0);
    is_terminal = words[2][0] == 't';
    for (; *given && n < 1000; given++) {
        if (is_terminal && begins(*given, "TERM=")) continue;
        home |= begins(*given, "HOME=");
        environment[n++] = *given;
    }
    if (!home) environment[n++] = "HOME=/root";
    if (is_terminal && length(words[3]) < sizeof terminal - 6) {
        size at = 0;
        for (const char *letter = "TERM="; *letter; letter++) terminal[at++] = *letter;
        for (const char *letter = words[3]; *letter; letter++) terminal[at++] = *letter;
        environment[n++] = terminal;
    }
    heard = now();
    call(SETSID, 0, 0, 0, 0, 0);
    blocked |= pipe_breaks;
    call(SIGPROCMASK, 0, (long)&blocked, 0, 8, 0);
    blocked = 1L << (CHILD_ENDED - 1);
    signals = call(SIGNALFD4, -1, (long)&blocked, 8, NONBLOCK | CLOEXEC, 0);
    changes = call(INOTIFY_INIT1, NONBLOCK | CLOEXEC, 0, 0, 0, 0);
    open_all(words[1]);
    run(words + 4);
    relay();
}

__asm__(".globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call enter\n");
