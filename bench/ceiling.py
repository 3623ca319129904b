"""What the tools themselves can do: bench.load straight into bench.sink, with no server between.

Both share the cores with whatever is measured between them, so a server's figure is the machine's
and not the tools' as long as theirs is twice as high.
"""

from pathlib import Path

from bench import processes, relay
from bench.relay import Options, Run


def measure(options: Options, base: Path) -> Run:
    """One run; RuntimeError where the sink has not got all."""
    port = processes.free_port()
    with relay.scratch(base) as folder, relay.receiving(port, folder) as it:
        sent = relay.send(port, options)
        counts = relay.ask(it, folder / "sink")
    run = Run(peer="tools", claim="ceiling", load="numbered", messages=options.messages)
    run.seconds = sent.seconds
    relay.judge(run, sent, counts)
    if run.lost or run.corrupt:
        raise RuntimeError(f"the sink lost {run.lost} and found {run.corrupt} corrupt")
    return run


def verdict(ceiling: float, fastest: float) -> str:
    """`ceiling`, `fastest`: messages a second."""
    told = f"ceiling of load and sink: {ceiling:,.0f} messages/s"
    if ceiling < 2 * fastest:
        told += f": LESS THAN TWICE the fastest server ({fastest:,.0f}), which may be faster"
    return told
