/* SPDX-License-Identifier: Apache-2.0 */
/* Text that grows, JSON written into it, and JSON read (RFC 8259). */

#define _POSIX_C_SOURCE 200809L
#include "json.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { DEPTH_LIMIT = 256 }; /* of objects and arrays in each other */

bool write_all(int fd, const char *from, size_t len) {
    while (len) {
        ssize_t done = write(fd, from, len);
        if (done < 0 && errno != EINTR) return false;
        if (done > 0) from += done, len -= (size_t)done;
    }
    return true;
}

void put(struct text *to, const void *from, size_t len) {
    if (to->len + len + 1 > to->room) {
        size_t room = (to->len + len + 128) * 2;
        char *at = realloc(to->at, room);
        if (!at) {
            static const char message[] = "{\"cniVersion\":\"1.1.0\",\"code\":11,\"msg\":\"out of memory\"}\n";
            write_all(STDOUT_FILENO, message, sizeof message - 1);
            exit(1);
        }
        to->at = at;
        to->room = room;
    }
    if (len) memcpy(to->at + to->len, from, len);
    to->len += len;
    to->at[to->len] = 0;
}

void putf(struct text *to, const char *format, ...) {
    char line[2 * PATH_MAX];
    va_list args;
    va_start(args, format);
    int len = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (len > 0) put(to, line, (size_t)len < sizeof line ? (size_t)len : sizeof line - 1);
}

/* Return the width of the well-formed UTF-8 sequence at `at` (RFC 3629, section 4), 0 when there is none. */
static size_t utf8_width(const unsigned char *at, size_t left) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t width = *at < 0x80 ? 1 : *at >> 5 == 6 ? 2 : *at >> 4 == 14 ? 3 : *at >> 3 == 30 ? 4 : 0;
    if (width <= 1 || width > left) return width == 1;
    uint32_t point = *at & (0x7fu >> width);
    for (size_t i = 1; i < width; i++) {
        if ((at[i] & 0xc0) != 0x80) return 0;
        point = point << 6 | (at[i] & 0x3fu);
    }
    return point < least[width] || point > 0x10ffff || (point >= 0xd800 && point < 0xe000) ? 0 : width;
}

/* Put a JSON string. A byte that is no UTF-8 becomes a lone surrogate, as Python's surrogateescape has it (PEP 383). */
void put_json(struct text *to, const char *from, size_t len) {
    const unsigned char *at = (const unsigned char *)from, *end = at + len;
    put(to, "\"", 1);
    while (at < end) {
        size_t width = utf8_width(at, (size_t)(end - at));
        if (width == 0) putf(to, "\\udc%02x", *at);
        else if (*at < 0x20) putf(to, "\\u%04x", *at);
        else if (*at == '"' || *at == '\\') putf(to, "\\%c", *at);
        else put(to, at, width);
        at += width ? width : 1;
    }
    put(to, "\"", 1);
}

void put_base64(struct text *to, const struct text *from) { /* RFC 4648, section 4 */
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < from->len; i += 3) {
        size_t have = from->len - i < 3 ? from->len - i : 3;
        uint32_t bits = 0;
        for (size_t k = 0; k < 3; k++) bits = bits << 8 | (k < have ? (unsigned char)from->at[i + k] : 0);
        char four[4] = {digits[bits >> 18], digits[bits >> 12 & 63], digits[bits >> 6 & 63], digits[bits & 63]};
        if (have < 3) four[3] = '=';
        if (have < 2) four[2] = '=';
        put(to, four, 4);
    }
}

struct cursor {
    const char *at, *end;
};

static char here(const struct cursor *c) { return c->at < c->end ? *c->at : 0; }

static bool accept_one(struct cursor *c, const char *signs) {
    if (!here(c) || !strchr(signs, here(c))) return false;
    c->at++;
    return true;
}

static void skip_blank(struct cursor *c) {
    while (accept_one(c, " \t\r\n")) continue;
}

static bool skip_digits(struct cursor *c) {
    const char *start = c->at;
    while (accept_one(c, "0123456789")) continue;
    return c->at > start;
}

static bool skip_number(struct cursor *c) {
    accept_one(c, "-");
    if (!accept_one(c, "0") && !skip_digits(c)) return false;
    if (accept_one(c, ".") && !skip_digits(c)) return false;
    if (!accept_one(c, "eE")) return true;
    accept_one(c, "+-");
    return skip_digits(c);
}

static bool skip_word(struct cursor *c, const char *word) {
    size_t len = strlen(word);
    if ((size_t)(c->end - c->at) < len || memcmp(c->at, word, len) != 0) return false;
    c->at += len;
    return true;
}

static bool read_hex4(struct cursor *c, uint32_t *point) {
    *point = 0;
    for (int i = 0; i < 4; i++) {
        static const char digits[] = "0123456789abcdef";
        const char *digit = here(c) ? strchr(digits, here(c) | 0x20) : NULL;
        if (!digit || !*digit || (here(c) < '0')) return false;
        *point = *point << 4 | (uint32_t)(digit - digits);
        c->at++;
    }
    return true;
}

static void put_point(struct text *to, uint32_t point) {
    unsigned char all[4] = {(unsigned char)(0xf0 | point >> 18), (unsigned char)(0x80 | (point >> 12 & 0x3f)),
                            (unsigned char)(0x80 | (point >> 6 & 0x3f)), (unsigned char)(0x80 | (point & 0x3f))};
    size_t width = point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
    if (width == 1) all[3] = (unsigned char)point;
    if (width == 2) all[2] = (unsigned char)(0xc0 | point >> 6);
    if (width == 3) all[1] = (unsigned char)(0xe0 | point >> 12);
    put(to, all + 4 - width, width);
}

static bool read_escape(struct cursor *c, struct text *to) {
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    const char *name = here(c) ? strchr(names, here(c)) : NULL;
    if (name) {
        c->at++;
        put(to, values + (name - names), 1);
        return true;
    }
    uint32_t point, low;
    if (!accept_one(c, "u") || !read_hex4(c, &point)) return false;
    struct cursor next = *c;
    if (point >= 0xd800 && point < 0xdc00 && skip_word(&next, "\\u") && read_hex4(&next, &low) && low >= 0xdc00 &&
        low < 0xe000) {
        point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
        *c = next;
    }
    put_point(to, point);
    return true;
}

static bool read_string(struct cursor *c, struct text *to) {
    to->len = 0;
    put(to, "", 0);
    if (!accept_one(c, "\"")) return false;
    while (c->at < c->end) {
        unsigned char sign = (unsigned char)*c->at++;
        if (sign == '"') return true;
        if (sign < 0x20 || (sign == '\\' && !read_escape(c, to))) return false;
        if (sign != '\\') put(to, &sign, 1);
    }
    return false;
}

static bool skip_value(struct cursor *c, struct text *scratch, int depth);

/* Read an object or an array; `note` is told its own members, not theirs. */
static bool read_container(struct cursor *c, struct text *scratch, int depth, member *note) {
    const char *close = *c->at++ == '{' ? "}" : "]";
    skip_blank(c);
    if (accept_one(c, close)) return true;
    for (;;) {
        struct text key = {0};
        bool good = true;
        if (*close == '}') {
            good = read_string(c, note ? &key : scratch);
            skip_blank(c);
            good = good && accept_one(c, ":");
        }
        skip_blank(c);
        struct cursor value = *c;
        good = good && skip_value(c, scratch, depth - 1);
        value.end = c->at;
        if (good && note) note(&key, value.at, (size_t)(value.end - value.at));
        free(key.at);
        skip_blank(c);
        if (good && accept_one(c, close)) return true;
        if (!good || !accept_one(c, ",")) return false;
        skip_blank(c);
    }
}

static bool skip_value(struct cursor *c, struct text *scratch, int depth) {
    switch (here(c)) {
        case '{':
        case '[': return depth > 0 && read_container(c, scratch, depth, NULL);
        case '"': return read_string(c, scratch);
        case 't': return skip_word(c, "true");
        case 'f': return skip_word(c, "false");
        case 'n': return skip_word(c, "null");
        default: return skip_number(c);
    }
}

bool read_object(const char *text, size_t len, member *note) {
    struct cursor c = {text, text + len};
    struct text scratch = {0};
    skip_blank(&c);
    bool good = here(&c) == '{' && read_container(&c, &scratch, DEPTH_LIMIT, note);
    skip_blank(&c);
    free(scratch.at);
    return good && c.at == c.end;
}

bool read_text(const char *value, size_t len, struct text *to) {
    struct cursor c = {value, value + len};
    return read_string(&c, to) && c.at == c.end && strlen(to->at) == to->len;
}
