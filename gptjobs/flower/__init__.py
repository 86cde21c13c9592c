"""What Flower is started with (`celery -A gptjobs.flower flower`): the Celery application, and Flower taught jobs.

Flower has no plug-ins, but it builds itself from the modules' values that are set here, before it does.
"""

import flower.app
import flower.events
import flower.urls
import flower.views.tasks
from flower.api import BaseApiHandler
from flower.options import default_options
from tornado.web import url

from gptjobs import broker, settings
from gptjobs.flower.events import JobEvents
from gptjobs.flower.pages import (
    COLUMNS,
    FILES,
    TEMPLATES,
    Cancel,
    Files,
    JobMetrics,
    JobsTable,
    Templates,
    write_api_error,
)
from gptjobs.flower.runs import HANDLERS
from gptjobs.flower.task import JobTask

flower.events.EventsState.Task = JobTask
flower.app.Events = JobEvents
BaseApiHandler.write_error = write_api_error
flower.urls.settings["template_loader"] = Templates(str(TEMPLATES))
flower.urls.handlers[:0] = [  # the first that matches answers
    *HANDLERS,
    url(r"/tasks/datatable", JobsTable),
    url(r"/api/task/revoke/(.+)", Cancel),
    url(r"/metrics", JobMetrics),
    url(r"/files/(.*)", Files, {"path": str(FILES)}, name="files"),
]
flower.views.tasks.TASK_COLUMNS.update(COLUMNS)
default_options.tasks_columns = ",".join(COLUMNS)
default_options.natural_time = True  # "2 minutes ago", whatever the time zones of Flower and its reader

app = broker.connect(settings.load().redis_url)
