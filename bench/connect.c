/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A program that connects, in a tight loop: socket(), connect() that does not wait, close(). The sockets are closed without a
 * word (linger 0), so that nothing of one is in the way of the next. Of the network it sees what its parent gave it; of the
 * cgroups, the one that it is told to enter. Prints nanoseconds, medians over the turns: of connect() alone, and of everything.
 * With two words only, it is the other side: accepts at that address and port, and closes, until it is stopped. */
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
#define BACKLOG 65535 /* more than one loop makes: it never waits for the other side's program */

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

static int compare(const void *one, const void *other)
{
	int a = *(const int *)one, b = *(const int *)other;

	return (a > b) - (a < b);
}

static int median(int *values, long count)
{
	qsort(values, count, sizeof(*values), compare);
	return values[count / 2];
}

/* Looks now and then, so that nobody has to be woken when a connection is made. */
static int accept_all(struct sockaddr_in *here)
{
	int made = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one;

	if (bind(made, (struct sockaddr *)here, sizeof(*here)) || listen(made, BACKLOG))
		fail("listen");
	for (;;) {
		while ((one = accept(made, 0, 0)) >= 0)
			close(one);
		usleep(10000);
	}
}

int main(int count, char **words)
{
	struct sockaddr_in there = {.sin_family = AF_INET};
	struct linger at_once = {.l_onoff = 1};
	long turns, start, begun, done, asking;
	int *connecting, *everything;
	int kind;

	if (count == 3 && inet_pton(AF_INET, words[1], &there.sin_addr) == 1) {
		there.sin_port = htons(atoi(words[2]));
		return accept_all(&there);
	}
	if (count != 6 || inet_pton(AF_INET, words[2], &there.sin_addr) != 1) {
		fprintf(stderr, "usage: connect tcp|udp ADDRESS PORT TURNS CGROUP.PROCS | connect ADDRESS PORT\n");
		return 2;
	}
	kind = (strcmp(words[1], "tcp") ? SOCK_DGRAM : SOCK_STREAM) | SOCK_NONBLOCK;
	there.sin_port = htons(atoi(words[3]));
	turns = atol(words[4]);
	connecting = calloc(turns, sizeof(int));
	everything = calloc(turns, sizeof(int));
	if (turns < 1 || !connecting || !everything)
		fail("turns");
	enter(words[5]);
	asking = clock_ns();
	for (long turn = -WARM_UP; turn < turns; turn++) {
		int made;

		start = now_ns();
		made = socket(AF_INET, kind, 0);
		setsockopt(made, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
		begun = now_ns();
		if (connect(made, (struct sockaddr *)&there, sizeof(there)) && errno != EINPROGRESS && errno != ECONNREFUSED)
			fail("connect");
		done = now_ns();
		close(made);
		if (turn < 0)
			continue;
		connecting[turn] = done - begun - asking;
		everything[turn] = now_ns() - start - 3 * asking;
	}
	printf("%d %d\n", median(connecting, turns), median(everything, turns));
	return 0;
}
