/* SPDX-License-Identifier: MIT */
#ifndef LIMITS_H
#define LIMITS_H

/*
 * Every bound of the daemon that clients do not see in onebit.h, with its reason. What an
 * administrator may set is in policy.h; these are the ceilings and the sizes of one turn.
 */

#define CLIENTS_CEILING    4096u /* slots are allocated at start: 4096 x ~300 B */
#define REQUESTS_CEILING   8192u /* likewise, ~500 B each */
#define PRINCIPALS_MAX     2048u /* users and tenants accounted at a time */
#define INCIDENTS_MAX      64u   /* kept for ONEBIT_QUERY_INCIDENTS */
#define OVERRIDES_MAX      64u   /* per-uid lines of the configuration */

/* One client's share of one turn: what a hostile one can make the daemon do before others run. */
#define TURN_SQES          16u           /* entries taken from one ring */
#define TURN_COPY_BYTES    (256u << 10)  /* after so much copied the ring waits for the next turn */
#define TURN_EVENTS        64u           /* events taken from one executor */
#define TURN_DISPATCH      16u           /* requests handed to the executor */

/* The stats page is as old as this at most while the loop is busy; before a sleep it is fresh. */
#define STATS_EVERY_NS     10000000ull

/* Looks at the hot rings between two looks at everything else, while spinning. */
#define SPIN_LOOKS         8u

/* While spinning, a ring that was quiet so long goes cold, so that a look costs O(busy rings). */
#define COLD_AFTER_NS      2000000ull /* 1,024 clients that each have to ring take half of it */
#define COLD_EVERY         64u /* spins between two looks for such */

/* Spurious doorbells a client may ring in one window before its doorbell is put aside. */
#define SPURIOUS_MAX       32u
#define SPURIOUS_PAROLE    4u /* so many right after a rest */
#define SPURIOUS_WINDOW_NS 10000000ull
#define SPURIOUS_REST_NS   20000000ull  /* the first time, doubled while it goes on */
#define SPURIOUS_REST_MAX  640000000ull

/* A waiting request rises one priority class for every such while. */
#define AGING_NS           2000000000ull

/* Suspicion: see ARCHITECTURE, Processes. */
#define SUSPECT_DEATHS     2u /* in flight at so many deaths without a new token */
#define POISON_DEATHS      2u /* of executors while alone */
#define POISON_TOKENS      4096u /* what it costs its principal, in fair sharing and in its rate */

/* Executor restarts: at once after progress, else doubling from first to last. */
#define BACKOFF_FIRST_NS   10000000ull
#define BACKOFF_LAST_NS    5000000000ull
#define START_FAILURES_MAX 8u /* in a row, then waiting requests fail rather than hang */
#define START_DEADLINE_NS  30000000000ull /* from start to hello: a 2B model from a slow disk */
#define STOP_DEADLINE_NS   2000000000ull  /* from STOP to exit, then SIGKILL */

#define JOURNAL_UNIT       1024u /* smallest allocation of the journal */
#define JOURNAL_BYTES_MIN  (1u << 20)
#define JOURNAL_BYTES_MAX  (1u << 30)

#endif
