"""TensorBoard's files, which `tensorboard --logdir outputs` shows: a file an attempt, read in the order of attempts.

Each begins with a SessionLog START at step 0 and then holds the job's whole course so far: TensorBoard drops what it
read in earlier files. Its other, faster reader knows no START; there a curve's first step preempts its later ones.
"""

import time
from typing import Any

from google.protobuf.struct_pb2 import Value
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.record_writer import RecordWriter

from gptjobs.history import Line
from gptjobs.job import JobState, Outcome
from worker.subject import Subject, values

FILE_VERSION = "brain.Event:2"


class TensorBoard:
    """Scalars; alerts and the outcome as text; hyperparameters for the tab HParams."""

    def __init__(self, subject: Subject) -> None:
        job, name, attempt = subject.spec.id, subject.spec.name, subject.attempt
        for folder in (subject.layout.tensorboard(job, None), subject.layout.tensorboard(job, name)):
            folder.mkdir(exist_ok=True)  # not its parents: where the root is away, nothing is made
        self._file = RecordWriter(subject.layout.tensorboard_file(job, name, attempt.token).open("wb"))
        self._step = 0
        self._add(attempt.began_at, 0, file_version=FILE_VERSION)
        self._add(attempt.began_at, 0, session_log=SessionLog(status=SessionLog.START))
        hparams = {name: _value(each) for name, each in subject.hyperparameters.items() if each is not None}
        began = SessionStartInfo(hparams=hparams, start_time_secs=attempt.began_at)
        self._add_hparams(metadata.SESSION_START_INFO_TAG, attempt.began_at, session_start_info=began)

    def progress(self, line: Line) -> None:
        self._step = line["step"]
        points = [Summary.Value(tag=curve, simple_value=value) for curve, value in values(line).items()]
        self._add(line["time"], self._step, summary=Summary(value=points))

    def alert(self, line: Line, *, is_told: bool) -> None:
        self._add_text("alerts", f"{line['name']}: {line['reason']}", line["time"], line["step"])

    def flush(self) -> None:
        self._file.flush()

    def end(self, outcome: Outcome | None) -> None:
        if outcome is not None and outcome.state.is_terminal:
            now, is_good = time.time(), outcome.state is JobState.FINISHED
            self._add_text("outcome", str(outcome), now, self._step)
            status = api_pb2.STATUS_SUCCESS if is_good else api_pb2.STATUS_FAILURE
            ended = SessionEndInfo(status=status, end_time_secs=now)
            self._add_hparams(metadata.SESSION_END_INFO_TAG, now, session_end_info=ended)
        self._file.close()

    def _add_text(self, tag: str, text: str, seconds: float, step: int) -> None:
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()], tensor_shape=shape)
        value = Summary.Value(tag=tag, tensor=tensor, metadata=create_summary_metadata("", ""))
        self._add(seconds, step, summary=Summary(value=[value]))

    def _add_hparams(self, tag: str, seconds: float, **part: Any) -> None:
        about = metadata.create_summary_metadata(HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION, **part))
        value = Summary.Value(tag=tag, tensor=metadata.NULL_TENSOR, metadata=about)
        self._add(seconds, 0, summary=Summary(value=[value]))

    def _add(self, seconds: float, step: int, **what: Any) -> None:
        self._file.write(Event(wall_time=seconds, step=step, **what).SerializeToString())


def _value(each: Any) -> Value:
    if isinstance(each, bool):
        return Value(bool_value=each)
    return Value(number_value=each) if isinstance(each, int | float) else Value(string_value=str(each))
