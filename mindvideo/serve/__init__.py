# SPDX-License-Identifier: Apache-2.0
"""A model behind HTTP: `server.py` starts and stops it, `app.py` has the routes, `intake.py` takes requests apart,
`batching.py` runs the model, `decode.py` opens videos in a process of their own, `drawing.py` and `page.html` show."""
