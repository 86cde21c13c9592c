"""What Flower is started with: the Celery application (`celery -A gptjobs.flower flower`)."""

from gptjobs import broker, settings

app = broker.connect(settings.load().redis_url)
