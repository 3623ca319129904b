"""Where mail goes: by site and source, what they allow, and what they say."""

from grafana.layout import Board, Chart, Row
from grafana.queries import Query, now, rate, share, top

SITE = "fastmta_site_transactions_total"
SOURCE = "fastmta_source_transactions_total"
PROVIDER = "fastmta_provider_transactions_total"
DELIVERED, DEFERRED, FAILED = (
    ['end="delivered"'],
    ['end="deferred"'],
    ['end="failed"'],
)


def busiest(gauge: str, by: str = "path") -> list[Query]:
    return [top(now(gauge, by=by))]


DELIVERY = Board(
    "fastmta-delivery",
    "fastmta: delivery",
    "By site, provider and source: rates, limits in force, deferrals, connections. The busiest"
    " have a name, all others are `other`.",
    [
        Row(
            "By site",
            [
                Chart(
                    "Delivered by site",
                    "Mail transactions with a 2xx.",
                    "cps",
                    [top(rate(SITE, by="site", where=DELIVERED))],
                ),
                Chart(
                    "Deferred by site",
                    "Mail transactions that are tried again.",
                    "cps",
                    [top(rate(SITE, by="site", where=DEFERRED))],
                ),
                Chart(
                    "Failed by site",
                    "Mail transactions with a 5xx.",
                    "cps",
                    [top(rate(SITE, by="site", where=FAILED))],
                ),
            ],
        ),
        Row(
            "By provider and source",
            [
                Chart(
                    "Delivered by provider",
                    "Mail transactions with a 2xx.",
                    "cps",
                    [rate(PROVIDER, by="provider", where=DELIVERED)],
                ),
                Chart(
                    "Delivered by source",
                    "`system` is where no source is configured.",
                    "cps",
                    [rate(SOURCE, by="source", where=DELIVERED)],
                ),
                Chart(
                    "Success by source",
                    "Share of mail transactions with a 2xx. One that falls alone is in trouble.",
                    "percentunit",
                    [share(rate(SOURCE, by="source", where=DELIVERED), rate(SOURCE, by="source"))],
                ),
                Chart(
                    "Refused for the source's sake",
                    "Recipients that were not taken because a list has our address.",
                    "cps",
                    [rate("fastmta_source_blocked_total", by="source")],
                ),
                Chart(
                    "Addresses set aside",
                    "Addresses of sources that could not be bound.",
                    "short",
                    [now("fastmta_source_addresses_set_aside", "set aside")],
                ),
                Chart(
                    "Deferrals by reason",
                    "By the category of docs/bounces.md.",
                    "cps",
                    [rate("fastmta_deferred_total", by="category")],
                    stacked=True,
                ),
            ],
        ),
        Row(
            "Limits in force",
            [
                Chart(
                    "Connections by path",
                    "Of the busiest, of all workers.",
                    "short",
                    busiest("fastmta_path_connections"),
                ),
                Chart(
                    "Connections allowed by path",
                    "As [shaping] and the replies of hosts have it now.",
                    "short",
                    busiest("fastmta_path_connections_limit"),
                ),
                Chart(
                    "Message rate allowed by path",
                    "Where there is such a limit now.",
                    "cps",
                    busiest("fastmta_path_rate_limit"),
                ),
                Chart(
                    "Slowed: connections",
                    "What slowed paths may have, and the rule of slow_down.toml that says so.",
                    "short",
                    busiest("fastmta_slowed_path_connections", "path, rule"),
                ),
                Chart(
                    "Slowed: message rate",
                    "The same for messages a second.",
                    "cps",
                    busiest("fastmta_slowed_path_messages_per_second", "path, rule"),
                ),
                Chart(
                    "Slowed paths",
                    "Paths below their limits, and how often hosts ask for it.",
                    "short",
                    [
                        now("fastmta_paths_slowed", "slowed"),
                        rate("fastmta_slow_downs_total", "slow-downs a second"),
                    ],
                ),
            ],
        ),
        Row(
            "Connections",
            [
                Chart(
                    "Connections out",
                    "Open now; paths with mail or connections; hosts that are paused.",
                    "short",
                    [
                        now("fastmta_delivery_connections_open", "open"),
                        now("fastmta_delivery_paths", "paths"),
                        now("fastmta_delivery_hosts_paused", "hosts paused"),
                    ],
                ),
                Chart(
                    "Opened and failed",
                    "Connections a second, and transactions over them.",
                    "cps",
                    [
                        rate("fastmta_delivery_connections_total", "opened"),
                        rate("fastmta_delivery_connections_failed_total", "failed"),
                        rate("fastmta_delivery_transactions_total", "transactions"),
                    ],
                ),
                Chart(
                    "TLS out",
                    "Connections by what came of TLS.",
                    "cps",
                    [rate("fastmta_delivery_tls_total", by="result")],
                ),
                Chart(
                    "Back-pressure",
                    "Envelopes put back as their path had no room, and destinations that wait.",
                    "short",
                    [
                        rate("fastmta_postponed_total", "put back a second"),
                        now("fastmta_queue_blocked_lanes", "destinations that wait"),
                    ],
                ),
                Chart(
                    "DNS",
                    "Queries sent, answers from the cache, and look-ups without an answer.",
                    "cps",
                    [
                        rate("fastmta_dns_queries_total", "queries"),
                        rate("fastmta_dns_cache_hits_total", "from the cache"),
                        rate("fastmta_dns_failures_total", "failures"),
                        rate("fastmta_dns_stale_total", "expired answers used"),
                    ],
                ),
                Chart(
                    "Converted and reported",
                    "Messages for hosts without 8BITMIME; reports to senders; bounces of bounces.",
                    "cps",
                    [
                        rate("fastmta_delivery_converted_total", "converted"),
                        rate("fastmta_reports_total", "reports"),
                        rate("fastmta_double_bounces_total", "bounces of bounces"),
                    ],
                ),
            ],
        ),
    ],
)
