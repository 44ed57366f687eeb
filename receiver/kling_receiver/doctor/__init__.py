"""The checks of a receiver: the command `kling-receiver doctor` prints them, the page of its health shows them.

echo.py     what the routes of callbacks and links answer to the doctor
checks.py   what sends requests: a callback, a link, a query to Kling
local.py    what does not: the disk, the settings
"""
