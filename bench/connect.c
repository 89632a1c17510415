/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A program that connects, in a tight loop: socket(), connect() that does not wait, close(). The sockets are closed without a
 * word (linger 0), so that nothing of one is in the way of the next. Of the network it sees what its parent gave it; of the
 * cgroups, the one that it is told to enter. Prints nanoseconds per turn: of connect() alone, and of everything. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define WARM_UP 200

static long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000L + now.tv_nsec;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void enter(const char *procs)
{
	int file = open(procs, O_WRONLY);

	if (file < 0 || write(file, "0", 1) != 1)
		fail(procs);
	close(file);
}

/* What asking for the time costs, twice. */
static long clock_ns(void)
{
	long start = now_ns();

	for (int i = 0; i < 1000; i++)
		now_ns();
	return (now_ns() - start) / 1000;
}

int main(int count, char **words)
{
	struct sockaddr_in there = {.sin_family = AF_INET};
	struct linger at_once = {.l_onoff = 1};
	long turns, begun, connecting = 0, start, asking;
	int kind;

	if (count != 6 || inet_pton(AF_INET, words[2], &there.sin_addr) != 1) {
		fprintf(stderr, "usage: connect tcp|udp ADDRESS PORT TURNS CGROUP.PROCS\n");
		return 2;
	}
	kind = (strcmp(words[1], "tcp") ? SOCK_DGRAM : SOCK_STREAM) | SOCK_NONBLOCK;
	there.sin_port = htons(atoi(words[3]));
	turns = atol(words[4]);
	enter(words[5]);
	asking = clock_ns();
	start = now_ns();
	for (long turn = -WARM_UP; turn < turns; turn++) {
		int made;

		if (!turn) {
			start = now_ns();
			connecting = 0;
		}
		made = socket(AF_INET, kind, 0);
		setsockopt(made, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
		begun = now_ns();
		if (connect(made, (struct sockaddr *)&there, sizeof(there)) && errno != EINPROGRESS && errno != ECONNREFUSED)
			fail("connect");
		connecting += now_ns() - begun - asking;
		close(made);
	}
	printf("%.1f %.1f\n", (double)connecting / turns, (double)(now_ns() - start) / turns - 2 * asking);
	return 0;
}
