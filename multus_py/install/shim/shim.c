/* SPDX-License-Identifier: Apache-2.0 */
/* The CNI plugin of a node that runs the multus-py daemon: it hands the call to the daemon's socket and prints the
 * answer. A DEL that finds no daemon is kept on disk, as a tombstone that the daemon replays. */

#define _POSIX_C_SOURCE 200809L
#include "json.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

/* Codes: CNI spec 1.1.0, section 5 "Error". */
enum { BAD_ENVIRONMENT = 4, IO = 5, DECODE = 6, BAD_CONFIG = 7, TRY_AGAIN = 11, NOT_AVAILABLE = 50, INTERNAL = 999 };
enum { BODY_LIMIT = 16 << 20, HEAD_LIMIT = 64 << 10, DETAILS_LIMIT = 2000 }; /* bytes */
enum { PAUSE = 100, DEL_REACH = 300, STATUS_REACH = 5000 };                  /* milliseconds */

static const char *const VERSIONS[] = {"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"};
enum { SPOKEN = sizeof VERSIONS / sizeof *VERSIONS };
static const char ABOUT[] = "multus-shim: hands CNI calls to the multus-py daemon of this node.\n"
                            "A container runtime starts it with CNI_COMMAND in its environment.\n";
#define ALPHANUMERIC "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

/* --- the call ----------------------------------------------------------------------------------------------------- */

enum { CNI_VERSION, DAEMON_SOCKET_DIR, SOCKET_DIR, CNI_DIR, SPOOL_DIR, TEXTS };
enum { READINESS, CALL, TIMES };
static const char *const TEXT_KEYS[TEXTS] = {"cniVersion", "daemonSocketDir", "socketDir", "cniDir", "spoolDir"};
static const char *const TIME_KEYS[TIMES] = {"readinessTimeout", "shimTimeout"};

static struct { /* empty, or 0: not given */
    struct text texts[TEXTS];
    double seconds[TIMES];
} config;
static struct text input, call, request, socket_path; /* standard input, our JSON of the call, its HTTP, the daemon */
static int64_t call_end;                              /* milliseconds of the monotonic clock */

/* A key stands as written, or in another case when it does not (as Go's decoder and the daemon read it). */
static bool named(const struct text *key, const char *name, bool have) {
    return key->len == strlen(name) && (have ? strcmp(key->at, name) : strcasecmp(key->at, name)) == 0;
}

/* Keep what the shim reads of the config. A value of another type counts as absent: the daemon says what is wrong. */
static void note(const struct text *key, const char *value, size_t len) {
    for (int i = 0; i < TEXTS; i++) {
        struct text found = {0};
        if (named(key, TEXT_KEYS[i], config.texts[i].len) && read_text(value, len, &found) && found.len) {
            struct text old = config.texts[i];
            config.texts[i] = found;
            found = old;
        }
        free(found.at);
    }
    for (int i = 0; i < TIMES; i++) {
        char *end;
        double seconds = named(key, TIME_KEYS[i], config.seconds[i] > 0) ? strtod(value, &end) : 0;
        if (seconds > 0 && seconds <= 86400 && end == value + len) config.seconds[i] = seconds;
    }
}

static const char *spoken_version(void) {
    for (int i = 0; i < SPOKEN; i++)
        if (config.texts[CNI_VERSION].len && strcmp(config.texts[CNI_VERSION].at, VERSIONS[i]) == 0) return VERSIONS[i];
    return VERSIONS[SPOKEN - 1];
}

/* Print a CNI error and end: `format` says what we were doing, to what and why it failed, `details` what to do. */
__attribute__((format(printf, 3, 4))) static _Noreturn void fail(int code, const char *details, const char *format,
                                                                 ...) {
    char msg[2 * PATH_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(msg, sizeof msg, format, args);
    va_end(args);
    struct text out = {0};
    putf(&out, "{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":", spoken_version(), code);
    put_json(&out, msg, strlen(msg));
    putf(&out, ",\"details\":");
    put_json(&out, details, strlen(details));
    put(&out, "}\n", 2);
    write_all(STDOUT_FILENO, out.at, out.len);
    free(out.at);
    exit(1);
}

static int64_t now(void) {
    struct timespec clock;
    clock_gettime(CLOCK_MONOTONIC, &clock);
    return (int64_t)clock.tv_sec * 1000 + clock.tv_nsec / 1000000;
}

static int left_until(int64_t end) { /* at most a day, by what `note` takes */
    int64_t left = end - now();
    return left > 0 ? (int)left : 0;
}

static void read_input(void) {
    static char chunk[65536];
    put(&input, "", 0);
    for (;;) {
        struct pollfd source = {.fd = STDIN_FILENO, .events = POLLIN};
        if (poll(&source, 1, left_until(call_end)) == 0)
            fail(TRY_AGAIN, "the caller must close it", "reading the config: standard input did not end in time");
        ssize_t got = read(STDIN_FILENO, chunk, sizeof chunk);
        if (got == 0) return;
        if (got < 0 && errno != EINTR && errno != EAGAIN)
            fail(IO, "the caller must open it", "reading the config from standard input: %s", strerror(errno));
        if (got > 0) put(&input, chunk, (size_t)got);
        if (input.len > BODY_LIMIT)
            fail(DECODE, "no network config is that large", "the config on standard input is larger than %d bytes",
                 BODY_LIMIT);
    }
}

/* Make the body of multus-cni's API, {"env": {...}, "config": base64}, but for the closing brace. */
static void make_call(void) {
    size_t count = 0;
    while (environ[count]) count++;
    putf(&call, "{\"env\":{");
    bool first = true;
    /* Backwards: of a name given twice getenv() takes the first, a JSON reader the last. */
    while (count-- > 0) {
        const char *name = environ[count], *equals = strchr(name, '=');
        if (!equals) continue;
        if (!first) put(&call, ",", 1);
        first = false;
        put_json(&call, name, (size_t)(equals - name));
        put(&call, ":", 1);
        put_json(&call, equals + 1, strlen(equals + 1));
    }
    putf(&call, "},\"config\":\"");
    put_base64(&call, &input);
    put(&call, "\"", 1);
}

static void make_request(void) {
    putf(&request,
         "POST /cni HTTP/1.1\r\nHost: unix\r\nContent-Type: application/json\r\nX-Multus-Py-Shim: 1\r\n"
         "Connection: close\r\nContent-Length: %zu\r\n\r\n",
         call.len + 1);
    put(&request, call.at, call.len);
    put(&request, "}", 1);
}

/* --- asking the daemon -------------------------------------------------------------------------------------------- */

enum outcome { ANSWERED, UNREACHED, BROKEN, TIMED_OUT };

struct answer {
    struct text text;
    long status;      /* 0: what came is no answer that we understand */
    size_t head, len; /* of `text`: the bytes before the body, 0 as long as they are not all there; the body's length */
};

/* Read status and Content-Length as soon as the head is there (RFC 9112, sections 4 and 6.3); false: not yet. */
static bool read_head(struct answer *answer) {
    if (answer->head) return true;
    char *at = answer->text.at, *end = strstr(at, "\r\n\r\n");
    if (!end && answer->text.len < HEAD_LIMIT) return false;
    answer->head = end ? (size_t)(end - at) + 4 : answer->text.len;
    if (!end || strncmp(at, "HTTP/1.", 7) != 0 || at[8] != ' ') return true;
    for (char *line = strstr(at, "\r\n"); line < end; line = strstr(line + 2, "\r\n")) {
        if (strncasecmp(line + 2, "Content-Length:", 15) != 0) continue;
        char *stop;
        unsigned long long len = strtoull(line + 17, &stop, 10);
        if (stop == line + 17 || *stop != '\r' || len > BODY_LIMIT) return true;
        answer->len = (size_t)len;
        answer->status = strtol(at + 9, NULL, 10);
    }
    return true;
}

static bool is_complete(struct answer *answer) {
    if (!read_head(answer)) return false;
    size_t have = answer->text.len - answer->head;
    if (answer->status) return have >= answer->len;
    answer->len = have; /* whatever it is, it ends with the connection: enough of it is read to be told */
    return have >= HEAD_LIMIT;
}

/* Send the request and read the answer, both at once: a daemon may answer before it has read all. */
static enum outcome exchange(int fd, struct answer *answer) {
    static char chunk[65536];
    size_t sent = 0;
    while (left_until(call_end) > 0) {
        struct pollfd peer = {.fd = fd, .events = (short)(sent < request.len ? POLLIN | POLLOUT : POLLIN)};
        if (poll(&peer, 1, left_until(call_end)) <= 0) continue;
        if (peer.revents & ~POLLOUT) {
            ssize_t got = recv(fd, chunk, sizeof chunk, MSG_DONTWAIT);
            if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
                return answer->head && !answer->status ? ANSWERED : BROKEN;
            if (got > 0) put(&answer->text, chunk, (size_t)got);
            if (got > 0 && is_complete(answer)) return ANSWERED;
        } else {
            ssize_t done = send(fd, request.at + sent, request.len - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
            if (done > 0) sent += (size_t)done;
            /* The daemon reads no further, but its answer may be there. */
            if (done < 0 && errno != EAGAIN && errno != EINTR) sent = request.len;
        }
    }
    return TIMED_OUT;
}

/* Ask once; `patience` in milliseconds bounds the wait for a daemon whose queue is full. errno tells of UNREACHED. */
static enum outcome ask(struct answer *answer, int patience) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, socket_path.at, socket_path.len);
    struct timeval wait = {patience / 1000, patience % 1000 * 1000 + 1}; /* zero would be for ever */
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return UNREACHED;
    enum outcome outcome = UNREACHED;
    if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait) == 0 &&
        connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
        outcome = exchange(fd, answer);
    int error = errno;
    close(fd);
    errno = error;
    return outcome;
}

/* --- the tombstone of a DEL --------------------------------------------------------------------------------------- */

static bool sync_folder(int fd) {
    /* EINVAL: a file system that has no such thing for folders. */
    return fsync(fd) == 0 || errno == EINVAL;
}

static bool sync_parent(const char *path) {
    struct text parent = {0};
    putf(&parent, "%s/..", path);
    int fd = open(parent.at, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(parent.at);
    if (fd < 0) return false;
    bool good = sync_folder(fd);
    close(fd);
    return good;
}

/* Open the folder; make it, and those above it, when it is missing: for good, as what is put into it. */
static int open_folder(char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0 || errno != ENOENT) return fd;
    for (char *at = path + 1;; at++) {
        if (*at && *at != '/') continue;
        char sign = *at;
        *at = 0;
        bool good = mkdir(path, 0700) == 0 ? sync_parent(path) : errno == EEXIST;
        *at = sign;
        if (!good) return -1;
        if (!sign) return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    }
}

/* Write a file under a hidden name, then give it its own: it is there whole and for good, or not at all. */
static bool write_durably(int folder, const char *name, const struct text *body) {
    char hidden[NAME_MAX + 1];
    snprintf(hidden, sizeof hidden, ".%s", name);
    int fd = openat(folder, hidden, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return false;
    bool renamed = write_all(fd, body->at, body->len) && fsync(fd) == 0 && renameat(folder, hidden, folder, name) == 0;
    bool done = renamed && sync_folder(folder);
    int error = errno;
    if (!done) unlinkat(folder, renamed ? name : hidden, 0);
    close(fd);
    errno = error;
    return done;
}

static bool is_container_id(const char *id) { /* spec section 2; 200 is what the daemon takes */
    size_t letters = strspn(id, ALPHANUMERIC);
    return letters > 0 && strlen(id) <= 200 && strspn(id, ALPHANUMERIC "_.-") == strlen(id);
}

static bool is_ifname(const char *name) { /* spec section 2; of those the ones that any shell can show */
    size_t len = strlen(name);
    for (size_t i = 0; i < len; i++)
        if (name[i] <= ' ' || name[i] >= 0x7f || name[i] == '/' || name[i] == ':') return false;
    return len > 0 && len <= 15;
}

/* Say when this is by the clock that nobody sets, and in which life of the kernel; nothing where it tells none. */
static void put_uptime(void) {
    char boot[37] = {0};
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    bool whole = fd >= 0 && read(fd, boot, 36) == 36 && strspn(boot, ALPHANUMERIC "-") == 36;
    if (fd >= 0) close(fd);
    struct timespec clock;
    if (!whole || clock_gettime(CLOCK_BOOTTIME, &clock)) return;
    putf(&call, ",\"boot\":\"%s\",\"since\":%lld.%09ld", boot, (long long)clock.tv_sec, clock.tv_nsec);
}

/* Keep the DEL for the daemon's return and end with success; `why` it is kept is told when that fails. */
static _Noreturn void bury(const char *why) {
    const char *id = getenv("CNI_CONTAINERID"), *ifname = getenv("CNI_IFNAME");
    if (!id || !*id) fail(BAD_ENVIRONMENT, why, "cannot keep a DEL for later: CNI_CONTAINERID is missing");
    struct timespec clock;
    clock_gettime(CLOCK_REALTIME, &clock);
    long long seconds = clock.tv_sec;
    char name[NAME_MAX];
    int len = snprintf(name, sizeof name, "%011lld%09ld", seconds, clock.tv_nsec);
    if (is_container_id(id) && ifname && is_ifname(ifname))
        len += snprintf(name + len, sizeof name - (size_t)len, "-%s-%s", id, ifname);
    snprintf(name + len, sizeof name - (size_t)len, ".json");

    struct text spool = {0};
    if (config.texts[SPOOL_DIR].len) putf(&spool, "%s", config.texts[SPOOL_DIR].at);
    else putf(&spool, "%s/spool", config.texts[CNI_DIR].len ? config.texts[CNI_DIR].at : "/var/lib/cni/multus");
    put_uptime();
    putf(&call, ",\"time\":%lld.%09ld}\n", seconds, clock.tv_nsec);
    int folder = open_folder(spool.at);
    if (folder < 0 || !write_durably(folder, name, &call))
        fail(TRY_AGAIN, why, "cannot keep DEL for later as %s/%s: %s", spool.at, name, strerror(errno));
    exit(0);
}

/* --- the story ---------------------------------------------------------------------------------------------------- */

static int64_t milliseconds(int key, double otherwise) {
    return (int64_t)((config.seconds[key] > 0 ? config.seconds[key] : otherwise) * 1000);
}

static void find_socket(void) {
    const struct text *folder = &config.texts[config.texts[DAEMON_SOCKET_DIR].len ? DAEMON_SOCKET_DIR : SOCKET_DIR];
    putf(&socket_path, "%s/multus.sock", folder->len ? folder->at : "/run/multus");
    if (socket_path.len >= sizeof((struct sockaddr_un *)0)->sun_path)
        fail(BAD_CONFIG, "a socket's path has at most 107 bytes (unix(7)): shorten 'socketDir'",
             "the path of the daemon's socket is too long: %s", socket_path.at);
}

/* Ask until the daemon is there and ready, or `patience` milliseconds are over. A DEL has no need to wait. */
static enum outcome ask_patiently(struct answer *answer, int64_t patience, bool is_delete) {
    int64_t end = now() + patience < call_end ? now() + patience : call_end;
    for (bool first = true;; first = false) {
        free(answer->text.at);
        *answer = (struct answer){0};
        enum outcome outcome = ask(answer, left_until(end));
        bool again = outcome == UNREACHED || (outcome == ANSWERED && answer->status == 503);
        if (is_delete) again = first && outcome == UNREACHED && errno == ECONNREFUSED;
        if (!again || left_until(end) <= PAUSE) return outcome;
        nanosleep(&(struct timespec){.tv_nsec = PAUSE * 1000000}, NULL);
    }
}

/* Pass the daemon's answer on as it is, and return the exit code. */
static int pass_on(const struct answer *answer) {
    const char *body = answer->text.at + answer->head;
    bool is_object = read_object(body, answer->len, NULL);
    if ((answer->status == 200 && (is_object || answer->len == 0)) || (answer->status == 400 && is_object))
        return write_all(STDOUT_FILENO, body, answer->len) && answer->status == 200 ? 0 : 1;
    struct text said = {0};
    put(&said, body, strnlen(body, answer->len < DETAILS_LIMIT ? answer->len : DETAILS_LIMIT));
    fail(INTERNAL, said.at, "the daemon at %s gave an answer that is none of CNI (HTTP status %ld)", socket_path.at,
         answer->status);
}

static int print_versions(void) {
    struct text out = {0};
    putf(&out, "{\"cniVersion\":\"%s\",\"supportedVersions\":[", spoken_version());
    for (int i = 0; i < SPOKEN; i++) putf(&out, "%s\"%s\"", i ? "," : "", VERSIONS[i]);
    putf(&out, "]}\n");
    bool good = write_all(STDOUT_FILENO, out.at, out.len);
    free(out.at);
    return good ? 0 : 1;
}

static bool is_one_of(const char *verb, const char *const *verbs) {
    while (*verbs && strcmp(verb, *verbs) != 0) verbs++;
    return *verbs != NULL;
}

int main(void) {
    const char *verb = getenv("CNI_COMMAND");
    if (!verb || !*verb) return write_all(STDERR_FILENO, ABOUT, sizeof ABOUT - 1) ? 0 : 1;
    signal(SIGPIPE, SIG_IGN);
    umask(077);
    int64_t start = now();
    call_end = start + milliseconds(CALL, 180);
    read_input();
    read_object(input.at, input.len, note);
    if (strcmp(verb, "VERSION") == 0) return print_versions();
    if (!is_one_of(verb, (const char *const[]){"ADD", "CHECK", "DEL", "GC", "STATUS", NULL}))
        fail(BAD_ENVIRONMENT, "known: ADD, CHECK, DEL, GC, STATUS, VERSION", "CNI_COMMAND '%s' is not a verb", verb);
    call_end = start + milliseconds(CALL, 180);
    find_socket();
    make_call();
    make_request();

    bool is_delete = strcmp(verb, "DEL") == 0, is_status = strcmp(verb, "STATUS") == 0;
    int64_t patience = is_delete ? DEL_REACH : milliseconds(READINESS, 60);
    if (is_status && patience > STATUS_REACH) patience = STATUS_REACH;
    static struct answer answer;
    static struct text why;
    switch (ask_patiently(&answer, patience, is_delete)) {
        case ANSWERED:
            if (answer.status != 503) return pass_on(&answer);
            putf(&why, "the multus-py daemon at %s is not ready: %.500s", socket_path.at, answer.text.at + answer.head);
            break;
        case UNREACHED:
            putf(&why, "cannot reach the multus-py daemon at %s: %s", socket_path.at, strerror(errno));
            break;
        case BROKEN: putf(&why, "the multus-py daemon at %s went away before it answered", socket_path.at); break;
        case TIMED_OUT:
            fail(TRY_AGAIN, "its log says what it waits for; 'shimTimeout' bounds the call",
                 "the multus-py daemon at %s did not answer %s within %lld ms", socket_path.at, verb,
                 (long long)(call_end - start));
    }
    if (is_delete) bury(why.at);
    fail(is_status ? NOT_AVAILABLE : TRY_AGAIN, "is its pod on this node running and ready?", "%s", why.at);
}
