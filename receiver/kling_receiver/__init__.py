"""The receiver: stores Kling's callbacks, downloads the results, notifies waiters, delivers events to hooks.

The folders, in reading order. A folder imports only those below it in the second list.

web/        incoming HTTP: the callback route, the API under /api, authentication, limits, OpenAPI
tasks/      the life cycle of a task: ingest callbacks, transitions, queries to Kling, deadlines, repair at start
results/    result files: download, check, store, expire
events/     notify waiting streams; render tasks and events as JSON
hooks/      deliver events: which hooks exist, what matches, dispatch, retry, dead letters
sinks/      one file for each kind of address that a hook may have; a plugin interface
jobs/       the job queue: enqueue, claim under a lease, run, settle, back off
store/      the database: tables, unit of work, group commit, reads, locks, migrations
net/        requests to addresses that others chose, guarded against private networks
cli/        the command `kling-receiver`

app.py creates each part once and starts and stops them; server.py runs uvicorn; settings.py is the table of settings;
states.py is the state machine; policy.py, metrics.py, validation.py and filesystem.py are small helpers.

Lowest first: states, policy, validation, metrics, filesystem, store, jobs, net, events, sinks, results, hooks, tasks,
settings, web, app, server, cli.

What blocks and what awaits: the functions of `records`, `deliveries`, `ingest`, `transitions`, `registration`,
`enqueue` and `queue` take a transaction and never await. `dispatcher`, `runner`, `sender`, `download`, `reconcile` and
`worker` are asynchronous and never use a connection.

One callback, from its first byte to the hooks, always downward:

web/callbacks -> web/body -> kling_callback.protocol.webhooks.verify, kling_callback.protocol.reports.parse_callback
-> store/writer.run_batched(tasks/ingest.ingest), one commit: tasks/transitions, jobs/enqueue, store/transaction.flush
-> app._on_commit -> events/bus.notify, jobs/worker.wake
-> jobs/queue.claim_due -> tasks/reconcile -> kling_callback.kling_api.query -> tasks/transitions -> results/records
-> results/download -> net/client -> results/storage -> results/records.mark_stored, finish_task
-> hooks/dispatcher -> hooks/runner -> hooks/limiter -> hooks/sender -> sinks/http -> hooks/deliveries.record_attempts
"""

from importlib.metadata import version

__version__ = version("kling-callback")
