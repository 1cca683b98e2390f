/* SPDX-License-Identifier: Apache-2.0 */
/* Text that grows, JSON written into it, and JSON read: what the shim's story is told with. */

#ifndef MULTUS_SHIM_JSON_H
#define MULTUS_SHIM_JSON_H

#include <stdbool.h>
#include <stddef.h>

struct text { /* `at` ends with a zero that `len` does not count, as soon as anything was put; free `at` */
    char *at;
    size_t len, room;
};

/* Write all of it to a descriptor; false and errno when that fails. */
bool write_all(int fd, const char *from, size_t len);

/* Put bytes at the end. Without memory the process ends, with a CNI error. */
void put(struct text *to, const void *from, size_t len);

/* Put a formatted line of less than 8 KiB. */
__attribute__((format(printf, 2, 3))) void putf(struct text *to, const char *format, ...);

/* Put a JSON string. A byte that is no UTF-8 becomes a lone surrogate, as Python's surrogateescape has it (PEP 383). */
void put_json(struct text *to, const char *from, size_t len);

/* Put bytes as base64 (RFC 4648, section 4). */
void put_base64(struct text *to, const struct text *from);

/* What is told of one member of an object: its key, decoded, and its value as written. */
typedef void member(const struct text *key, const char *value, size_t len);

/* Tell whether the text is one JSON object and nothing else; members up to a fault are noted. `note` may be NULL. */
bool read_object(const char *text, size_t len, member *note);

/* Read the value of a member when it is a string without a zero in it. */
bool read_text(const char *value, size_t len, struct text *to);

#endif
