"""The ``lloyal`` command.

Results go to stdout, everything else (progress, logs, errors) to stderr. An error is one line and exit code 1, a wrong
command line one line and exit code 2, Ctrl-C exit code 130.
"""

from lloyal.cli import bench, demo, embed, info, program, rpc_server, run, score
from lloyal.cli.program import INTERRUPTED, app, main

__all__ = ["INTERRUPTED", "app", "main"]

app.command("demo")(demo.demo)
app.command("info")(info.info)
app.command("run")(run.run)
app.command("score")(score.score)
app.command("embed")(embed.embed)
app.command("rpc-server")(rpc_server.rpc_server)
program.bench.command("checkpoint")(bench.checkpoint)
program.bench.command("width")(bench.width)
program.bench.command("speculative")(bench.speculative)
