"""What comes in, what goes out, what waits and how long it takes."""

from grafana.layout import Board, Chart, Figure, Row
from grafana.queries import Query, now, quantiles, rate, share

RECEIVED = rate("fastmta_smtp_in_messages_total", "received")
DELIVERED = rate("fastmta_delivered_total", "delivered")
BOUNCED = rate("fastmta_bounced_total", "bounced")
ENDED = Query(f"({DELIVERED.expression} + {BOUNCED.expression})")
MISSING = Query(
    f"{now('fastmta_workers').expression} - {now('fastmta_workers_ready').expression}", "missing"
)
BY_PROVIDER = rate("fastmta_provider_transactions_total", by="provider")

OVERVIEW = Board(
    "fastmta-overview",
    "fastmta: overview",
    "A relay at a glance: what comes in, what goes out, what waits, how long it takes, and why.",
    [
        Row(
            "Now",
            [
                Figure("Received", "Messages acknowledged, a second.", "cps", RECEIVED),
                Figure("Delivered", "Recipients delivered, a second.", "cps", DELIVERED),
                Figure("Queue", "Envelopes that wait.", "short", now("fastmta_queue_envelopes")),
                Figure(
                    "Oldest",
                    "Age of the oldest message in the queue.",
                    "s",
                    now("fastmta_queue_oldest_seconds", of="max"),
                    172_800,
                ),
                Figure(
                    "Bounced",
                    "Share of the recipients that ended which failed for good.",
                    "percentunit",
                    share(BOUNCED, ENDED),
                    0.1,
                ),
                Figure("Workers missing", "Workers that do not answer.", "none", MISSING, 1),
            ],
        ),
        Row(
            "Flow",
            [
                Chart(
                    "In and out",
                    "Messages in; recipients out, by how their attempts ended.",
                    "cps",
                    [RECEIVED, DELIVERED, rate("fastmta_deferred_total", "deferred"), BOUNCED],
                ),
                Chart(
                    "Queue",
                    "Envelopes in the queue, of them held, and those on their way out.",
                    "short",
                    [
                        now("fastmta_queue_envelopes", "queued"),
                        now("fastmta_queue_held_envelopes", "held"),
                        now("fastmta_delivery_active", "on their way out"),
                    ],
                ),
                Chart(
                    "Oldest message",
                    "Age of the oldest message in the queue.",
                    "s",
                    [now("fastmta_queue_oldest_seconds", "oldest", of="max")],
                ),
            ],
        ),
        Row(
            "How well",
            [
                Chart(
                    "Success by provider",
                    "Share of mail transactions that ended with a 2xx; the rules of [shaping] name"
                    " the providers.",
                    "percentunit",
                    [
                        share(
                            rate(
                                "fastmta_provider_transactions_total",
                                by="provider",
                                where=['end="delivered"'],
                            ),
                            BY_PROVIDER,
                        )
                    ],
                ),
                Chart(
                    "From receipt to delivery",
                    "For recipients that were delivered.",
                    "s",
                    quantiles("fastmta_delivery_seconds", 0.5, 0.95, 0.99),
                ),
                Chart(
                    "From end of data to 250",
                    "How long a sender waits until its message is on the disk.",
                    "s",
                    quantiles("fastmta_smtp_in_accept_seconds", 0.5, 0.99),
                ),
            ],
        ),
        Row(
            "Why not",
            [
                Chart(
                    "Deferred by reason",
                    "Attempts that are made again, by the category of docs/bounces.md.",
                    "cps",
                    [rate("fastmta_deferred_total", by="category")],
                    stacked=True,
                ),
                Chart(
                    "Bounced by reason",
                    "Recipients that failed for good, by category.",
                    "cps",
                    [rate("fastmta_bounced_total", by="category")],
                    stacked=True,
                ),
                Chart(
                    "Refused at the door",
                    "Sessions, commands and messages that were refused, and by rate limits.",
                    "cps",
                    [
                        rate("fastmta_smtp_in_sessions_refused_total", "sessions"),
                        rate("fastmta_smtp_in_rejected_total", "commands and messages"),
                        rate("fastmta_limits_refused_total", "by rate limits"),
                    ],
                ),
            ],
        ),
        Row(
            "Load",
            [
                Chart(
                    "Sessions",
                    "Open now.",
                    "short",
                    [
                        now("fastmta_smtp_in_sessions_open", "SMTP in"),
                        now("fastmta_delivery_connections_open", "SMTP out"),
                        now("fastmta_pop3_sessions_open", "POP3"),
                    ],
                ),
                Chart(
                    "Octets in",
                    "Of messages accepted.",
                    "Bps",
                    [rate("fastmta_smtp_in_bytes_total", "in")],
                ),
                Chart(
                    "CPU",
                    "Cores that all processes of the relay use.",
                    "short",
                    [rate("fastmta_cpu_seconds_total", "cores")],
                ),
            ],
        ),
    ],
)
