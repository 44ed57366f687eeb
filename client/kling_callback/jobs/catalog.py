"""The table of typed jobs, from which their checks, command-line options and help are made.

Of known models, what Kling's pages rule out is refused. Unknown models and parameters pass. Limits and defaults are
those of Kling's pages, November 2026.
"""

from kling_callback.jobs.tables.images import IMAGE_TO_IMAGE, TEXT_TO_IMAGE
from kling_callback.jobs.tables.references import MOTION_CONTROL, OMNI_VIDEO
from kling_callback.jobs.tables.videos import IMAGE_TO_VIDEO, TEXT_TO_VIDEO

__all__ = ["IMAGE_TO_IMAGE", "IMAGE_TO_VIDEO", "JOBS", "MOTION_CONTROL", "OMNI_VIDEO", "TEXT_TO_IMAGE", "TEXT_TO_VIDEO"]

JOBS = (TEXT_TO_IMAGE, IMAGE_TO_IMAGE, TEXT_TO_VIDEO, IMAGE_TO_VIDEO, OMNI_VIDEO, MOTION_CONTROL)
