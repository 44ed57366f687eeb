"""The page that creates tasks: its fields come from the client's table of typed jobs, and so do its checks.

fields.py   how each type of parameter is shown, and how what was typed becomes its value
form.py     the form of a job and a model: which fields, what is wrong, the request to send, its price
stored.py   a form from the stored request of an earlier task
page.py     the routes

A chosen image stays in the browser. In the form an address that does not exist stands for it (`STAND_IN`), which
passes the checks as any URL does; create.js puts the image in its place in the request that `form.check` returns, and
sends that to `POST /api/tasks`.
"""
