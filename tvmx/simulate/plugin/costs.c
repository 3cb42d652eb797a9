/*
 * Asks the cost server of the host what blocks cost.
 *
 * One connection for each question, so that a forked guest shares none. In host byte order:
 *   question  u32 blocks, then of each: u32 instructions, u32 bytes, u8 size of each, the code
 *   answer    i64 thousandths of a cycle of each; a closed connection means the server failed
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include "model.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int connect_server(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, settings.socket, sizeof settings.socket);
    int server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (server < 0 || connect(server, (struct sockaddr *)&address, sizeof address) != 0) {
        die("no cost server at %s: %s", settings.socket, strerror(errno));
    }
    return server;
}

static void put(int server, const void *data, size_t bytes)
{
    const char *next = data;
    while (bytes > 0) {
        ssize_t done = send(server, next, bytes, MSG_NOSIGNAL);
        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done <= 0) {
            die("the cost server closed the connection: see the messages of tvmx");
        }
        next += done;
        bytes -= (size_t)done;
    }
}

static void get(int server, void *data, size_t bytes)
{
    char *next = data;
    while (bytes > 0) {
        ssize_t done = recv(server, next, bytes, 0);
        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done <= 0) {
            die("the cost server gave no answer: see the messages of tvmx");
        }
        next += done;
        bytes -= (size_t)done;
    }
}

void costs_fetch(const uint32_t *ids, size_t count)
{
    int server = connect_server();
    uint32_t blocks = (uint32_t)count;
    put(server, &blocks, sizeof blocks);
    for (size_t i = 0; i < count; i++) {
        const struct block *block = block_at(ids[i]);
        uint32_t header[2] = {block->instructions, block->bytes};
        put(server, header, sizeof header);
        put(server, block->sizes, block->instructions + (size_t)block->bytes);
    }
    for (size_t i = 0; i < count; i++) {
        get(server, &block_at(ids[i])->cost, sizeof(millicycles));
    }
    close(server);
}
