"""The receiver: stores Kling's callbacks, downloads the results, notifies waiters, delivers events to hooks.

The folders, in reading order:

web/        incoming HTTP: the callback route, the API under /api, authentication, limits, OpenAPI;
            the pages for people (web/dashboard)
tasks/      the life cycle of a task: ingest callbacks, transitions, queries to Kling, deadlines, repair at start
results/    result files: download, check, store, expire; thumbnails
events/     notify waiting streams; render tasks and events as JSON; the id of the event log
hooks/      deliver events: which hooks exist, what matches, dispatch, retry, dead letters
sinks/      one file for each kind of address that a hook may have; a plugin interface
statistics/ numbers for the pages: tasks by outcome, callbacks, durations, costs, queues, the health of hooks
jobs/       the job queue: enqueue, claim under a lease, run, settle, back off
access/     who may use the API and the pages: named tokens, used login links, the audit log
backup/     copy the database and the result files, continue from a restored copy
store/      the database: tables, unit of work, group commit, reads, locks, engines, migrations
net/        requests to addresses that others chose, guarded against private networks
doctor/     whether callbacks and links arrive, the keys work, the disk has space: for the command and the page
cli/        the command `kling-receiver`

parts.py creates each part once; app.py starts and stops them; server.py runs uvicorn; settings.py is the table of
settings; readiness.py has the checks of /readyz; states.py is the state machine; policy.py, metrics.py,
validation.py, logs.py, filesystem.py and threads.py are small helpers.

A module imports only from its own folder and from those before it in this list. Lowest first: states, jobs/kinds,
policy, validation, metrics, logs, filesystem, threads, store, access, jobs, net, events, sinks, results, hooks,
tasks, statistics, readiness, settings, doctor, parts, backup, web, app, server, cli.

What blocks and what awaits: the functions of `records`, `deliveries`, `ingest`, `transitions`, `registration`,
`submission`, `slots`, `enqueue` and `queue` take a transaction and never await. `dispatcher`, `runner`, `sender`,
`download`, `reconcile`, `creating` and `worker` are asynchronous; they reach the database only through `Reader.read`
and `Writer.run`.

One callback, from its first byte to the hooks:

web/callbacks -> kling_callback.protocol.signing.CallbackSigner.verify -> web/body
-> kling_callback.protocol.webhooks.verify, kling_callback.protocol.reports.parse_callback
-> store/writer.run_batched(tasks/ingest.ingest), one commit: tasks/transitions, jobs/enqueue, store/transaction.flush
-> app._on_commit -> events/bus.notify, jobs/worker.wake
-> jobs/queue.claim_due -> tasks/reconcile -> kling_callback.api.kling.query -> tasks/transitions -> results/records
-> results/download -> results/fetch -> net/client -> results/storage -> results/records.mark_stored, finish_task
-> hooks/dispatcher -> hooks/runner -> hooks/limiter -> hooks/sender -> sinks/http -> hooks/deliveries.record_attempts

One submission, until Kling has it:

web/api/submission -> tasks/submission.submit, one commit: tasks/registration, then tasks/slots.fill at its end
-> jobs/queue.claim_due -> tasks/creating, which commits `sending` -> KlingApi.create -> the outcome

Where to look:

a token or signature of a callback   web/callbacks; kling_callback.protocol.signing and .webhooks
a final status that is only a hint   tasks/ingest (recorded), tasks/reconcile (queried), tasks/transitions (ended)
a second paid create                 tasks/registration (may it be sent?), kling_callback.creation (sending, retries)
the same, sent by the receiver       tasks/submission (queued), tasks/creating (sent), kling_callback.api.create (rules)
a task that waits for a slot         tasks/slots (who holds them, who is next), tasks/startup (corrected at the start)
a task of another program            tasks/adoption; web/api/tasks.get_task_or_404 (by any of its ids)
the same id, other parameters        tasks/parameters; kling_callback.protocol.redact.digest
an interrupted download              results/fetch (resumed by Range), results/storage (the partial file)
a file that its host refuses         results/download (retried, another address), results/media (what is a file)
a thumbnail that is a placeholder    results/thumbnails (cached, refused), results/thumbnail_child (decoded)
a link that a browser does not show  web/api/results (types, policies, other origins), doctor/checks (opens one)
a result that is no file             kling_callback.protocol.results (found), tasks/transitions (stored)
a dead letter                        jobs/queue (state), hooks/deliveries (retry_dead, redeliver), web/api/deliveries
a paused hook                        hooks/deliveries (when), hooks/records (pause, resume, the reason)
jobs of a process that was killed    jobs/queue.rescue, called by app and jobs/worker
how many jobs run at once            jobs/kinds (each pool), jobs/worker (each concurrency key)
a cursor of another event log        events/log (its id), web/api/stream (409), results/owner (renewed at the start)
two databases, one results folder    results/owner (lock and record)
a task that was removed              results/removal (its files), store/removed (its rows; its id, for late callbacks)
a receiver that is not ready         readiness, tasks/rehearsal
an engine that is refused at start   store/engine/checks, called by store/database.check
a new kind of address for hooks      sinks/: a module and an entry point; or a package of your own
a token that was revoked             access/tokens (the cache), web/auth (each request), events/bus (open streams)
a page and its live updates          web/dashboard: its docstring says how a page is added
a login that is refused              web/dashboard/signin: session (cookie, same origin), login (link, password)
a program written for Kling           web/compat: routes (which path is what), creates, queries, holding, forward
who did what                         access/audit; web/auth (each action of the API has its entry)
a slow list of tasks                 store/task_list (by which index, and how far a search goes)
a number on a page                   statistics/; store/transaction.count (what an hour has)
a new column                         store/tables, store/rows, store/migrations
"""

from importlib.metadata import version

__version__ = version("kling-callback")
