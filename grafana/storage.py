"""The queue and what keeps it: commits, disk, and how late everything is."""

from grafana.layout import Board, Chart, Figure, Row
from grafana.queries import average, now, quantiles, rate, share

STORAGE = Board(
    "fastmta-storage",
    "fastmta: queue and storage",
    "The queue, commits, disk and map, scheduler lag, loop stalls, and the processes.",
    [
        Row(
            "Now",
            [
                Figure(
                    "Disk free",
                    "What can be written on the spool's disk.",
                    "bytes",
                    now("fastmta_spool_disk_free_bytes", of="min"),
                ),
                Figure(
                    "Spools full",
                    "Spools that answer 452: their disk is at its floor.",
                    "none",
                    now("fastmta_spool_full"),
                    1,
                ),
                Figure(
                    "Map in use",
                    "Share of what the spool's files may grow to.",
                    "percentunit",
                    share(now("fastmta_spool_file_bytes"), now("fastmta_spool_map_bytes")),
                    0.8,
                ),
                Figure(
                    "Stalls",
                    "Times a second that a worker's loop was busy for 20 ms or more.",
                    "cps",
                    rate("fastmta_loop_stalls_total"),
                    0.1,
                ),
            ],
        ),
        Row(
            "Queue",
            [
                Chart(
                    "Queue",
                    "Envelopes queued, of them held.",
                    "short",
                    [
                        now("fastmta_queue_envelopes", "queued"),
                        now("fastmta_queue_held_envelopes", "held"),
                        now("fastmta_queue_blocked_lanes", "destinations that wait for room"),
                    ],
                ),
                Chart(
                    "Scheduler lag",
                    "How late those were handed out that were due first.",
                    "s",
                    quantiles("fastmta_scheduler_lag_seconds", 0.5, 0.99),
                ),
                Chart(
                    "Expired",
                    "Envelopes that expired while they waited.",
                    "cps",
                    [rate("fastmta_expired_total", "expired")],
                ),
            ],
        ),
        Row(
            "Commits",
            [
                Chart(
                    "Commits",
                    "Synced transactions a second, and those that failed.",
                    "cps",
                    [
                        rate("fastmta_spool_commits_total", "spool"),
                        rate("fastmta_mail_commits_total", "mailboxes"),
                        rate("fastmta_spool_commit_errors_total", "spool, failed"),
                        rate("fastmta_mail_commit_errors_total", "mailboxes, failed"),
                    ],
                ),
                Chart(
                    "Time of a commit of the spool",
                    "From its begin to its flush.",
                    "s",
                    quantiles("fastmta_spool_commit_seconds", 0.5, 0.99),
                ),
                Chart(
                    "Operations in a commit",
                    "How many share a flush, on average.",
                    "short",
                    [
                        average("fastmta_spool_commit_operations", "spool"),
                        average("fastmta_mail_commit_operations", "mailboxes"),
                    ],
                ),
            ],
        ),
        Row(
            "Files",
            [
                Chart(
                    "The spool's files",
                    "In use, and of that free for new rows.",
                    "bytes",
                    [
                        now("fastmta_spool_file_bytes", "in use"),
                        now("fastmta_spool_free_bytes", "free in it"),
                    ],
                ),
                Chart(
                    "Disk",
                    "What can be written, and the floor under which no mail is taken.",
                    "bytes",
                    [
                        now("fastmta_spool_disk_free_bytes", "free", of="min"),
                        now("fastmta_spool_disk_floor_bytes", "floor", of="max"),
                    ],
                ),
                Chart(
                    "What could not be read or written",
                    "Rows moved aside, and lines of the disposition log that are lost.",
                    "cps",
                    [
                        rate("fastmta_spool_unreadable_total", "rows of the spool"),
                        rate("fastmta_mail_unreadable_total", "rows of mailboxes"),
                        rate("fastmta_log_lines_lost_total", "lines of the log"),
                    ],
                ),
            ],
        ),
        Row(
            "Processes",
            [
                Chart(
                    "Loop lag",
                    "How much later than due a worker's loop does something.",
                    "s",
                    quantiles("fastmta_loop_lag_seconds", 0.5, 0.99, 0.999),
                ),
                Chart(
                    "Stalls",
                    "Times a second that a loop was busy for 20 ms or more.",
                    "cps",
                    [rate("fastmta_loop_stalls_total", "stalls")],
                ),
                Chart(
                    "Telling the metrics",
                    "Time for which a worker's loop is busy with one scrape.",
                    "s",
                    quantiles("fastmta_collect_seconds", 0.5, 0.99),
                ),
                Chart(
                    "CPU",
                    "Cores that all processes use.",
                    "short",
                    [rate("fastmta_cpu_seconds_total", "cores")],
                ),
                Chart(
                    "Memory",
                    "Resident, of all processes.",
                    "bytes",
                    [now("fastmta_resident_memory_bytes", "resident")],
                ),
                Chart(
                    "Workers",
                    "That there should be, that answer, and how often one died.",
                    "short",
                    [
                        now("fastmta_workers", "configured"),
                        now("fastmta_workers_ready", "answer"),
                        now("fastmta_worker_restarts_total", "restarts"),
                        now("fastmta_build_info", "version {{version}}", by="version"),
                    ],
                ),
            ],
        ),
    ],
)
