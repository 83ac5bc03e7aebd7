"""`log_summary` in a training script: the model's table and numbers in the run that is open, and never an error."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_modelbudget import Summary, log_summary
from tests.builders import towers
from tests.trackers.mlflow_helpers import needs_mlflow
from tests.trackers.mlflow_server import Store

pytestmark = [pytest.mark.slow, needs_mlflow]

INPUTS = "float32[B, 3]"
PARAMS = 3 * 4 + 4


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A database of this module, as the one that training scripts log to; the process is as before afterwards."""
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{(tmp_path_factory.mktemp('training') / 'mlflow.db').as_posix()}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.delenv("RANK", raising=False)
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(uri)
        client = mlflow.MlflowClient()
        folder = tmp_path_factory.mktemp("artifacts")
        mlflow.set_experiment(experiment_id=client.create_experiment("training", folder.as_uri()))
        yield Store(client, uri)
        mlflow.set_tracking_uri(before)


@pytest.fixture
def active(store: Store) -> Iterator[Any]:
    """A run as a training script has it open; `data` of what it returns is what the store has by then."""
    import mlflow

    with mlflow.start_run() as run:
        yield lambda: store.client.get_run(run.info.run_id)


def linear() -> Any:
    """A torch layer of 16 params."""
    return pytest.importorskip("torch").nn.Linear(3, 4)


def test_a_run_can_be_sorted_by_what_its_model_takes(store: Store, active: Any, tmp_path: Path) -> None:
    """16 params of 4 bytes, 2 FLOPs for each of 12 products of each of 5 rows, and a planned peak of more than both.

    The forward pass reads 15 inputs and the params and writes 20 numbers; the backward pass, with as many FLOPs, reads
    gradients of these and the inputs and writes gradients of the params.
    """
    logged = log_summary(linear(), INPUTS, batch=5, training={"batch": 5, "optimizer": "sgd"})
    run = active()
    metrics = dict(run.data.metrics)
    assert metrics.pop("memory/training_peak_mib") > 2 * PARAMS * 4 / 2**20  # weights and gradients at least
    moved = 4 * (15 + PARAMS + 20 + 20 + 15 + PARAMS)
    assert metrics == {
        "params/total": PARAMS, "params/trainable": PARAMS, "memory/weights_mib": pytest.approx(PARAMS * 4 / 2**20, rel=1e-6),
        "compute/forward_gflops": 2 * 12 * 5 / 1e9, "memory/moved_mib": pytest.approx(moved / 2**20, rel=1e-6),
        "compute/arithmetic_intensity": pytest.approx(2 * 2 * 12 * 5 / moved, rel=1e-6),
    }  # fmt: skip
    folder = "modelbudget/Linear"
    assert store.files(run) == {
        f"{folder}/{name}" for name in ("summary.txt", "summary.html", "layers.json", "summary.json")
    }
    assert "Total params: 16" in store.text(run, f"{folder}/summary.txt", tmp_path)
    assert Summary.from_dict(json.loads(store.text(run, f"{folder}/summary.json", tmp_path))) == logged
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": f"{folder}/layers.json", "type": "table"}]


def test_each_model_is_logged_once_in_a_run(store: Store, active: Any) -> None:
    """Again it is nothing new; a second model keeps its numbers apart, and tables of the script's own stay listed."""
    table = {"path": "predictions.json", "type": "table"}
    store.client.set_tag(active().info.run_id, "mlflow.loggedArtifacts", json.dumps([table]))
    assert log_summary(towers()) is not None
    assert log_summary(towers()) is None
    assert log_summary(linear(), INPUTS, name="critic") is not None
    data = active().data
    assert (data.metrics["params/total"], data.metrics["critic/params/total"]) == (6201, PARAMS)
    assert [row["path"] for row in json.loads(data.tags["mlflow.loggedArtifacts"])] == [
        "predictions.json", "modelbudget/two-towers/layers.json", "modelbudget/critic/layers.json",
    ]  # fmt: skip


def test_only_the_first_of_many_processes_logs(active: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch says which one this is where its processes have found each other, else the launcher."""
    monkeypatch.setenv("RANK", "1")
    assert log_summary(towers()) is None
    distributed = pytest.importorskip("torch").distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        assert log_summary(towers()) is not None
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        pytest.param(
            lambda: log_summary(linear(), "float32[B, 9]"), "check that `inputs:` fits", id="inputs of another size"
        ),
        pytest.param(lambda: log_summary(3), "no model of a known framework", id="no model"),
        pytest.param(lambda: log_summary(linear(), INPUTS, training={"speed": 1}), "speed", id="no recipe"),
        pytest.param(lambda: log_summary(towers(), run_id="0" * 32), "not found", id="a run that is not there"),
    ],
)
def test_a_failure_is_a_warning(active: Any, caplog: pytest.LogCaptureFixture, call: Any, words: str) -> None:
    """It says why, and the training goes on."""
    assert call() is None
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert words in record.getMessage()
    assert active().data.metrics == {}


def test_without_a_run_nothing_is_started(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """The warning says what to do."""
    before = len(store.runs("training"))
    assert log_summary(towers()) is None
    assert "mlflow.start_run()" in caplog.text
    assert len(store.runs("training")) == before


def test_keras_logs_by_a_callback(active: Any) -> None:
    """The model of a real fit, when it begins."""
    keras = pytest.importorskip("keras")

    class LogSummary(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            log_summary(self.model)

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)], name="net")
    model.compile("sgd", "mse")
    numpy = pytest.importorskip("numpy")
    model.fit(numpy.zeros((2, 3)), numpy.zeros((2, 4)), epochs=2, verbose=0, callbacks=[LogSummary()])
    assert active().data.metrics["params/total"] == PARAMS


def test_the_trainer_of_hugging_face_logs_by_a_callback(active: Any) -> None:
    """Its own handler calls it, as at the beginning of a training."""
    trainer = pytest.importorskip("transformers.trainer_callback")

    class LogSummary(trainer.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            log_summary(model, INPUTS)

    handler = trainer.CallbackHandler([LogSummary()], linear(), None, None, None)
    handler.on_train_begin(None, trainer.TrainerState(), trainer.TrainerControl())
    assert active().data.metrics["params/total"] == PARAMS


def test_lightning_logs_by_a_callback(store: Store, tmp_path: Path) -> None:
    """To the run of its own logger, which is never the active one."""
    lightning = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.loggers import MLFlowLogger

    torch = pytest.importorskip("torch")

    class LogSummary(lightning.Callback):  # type: ignore[misc, name-defined]
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            logger = trainer.logger
            log_summary(pl_module, pl_module.example_input_array, run_id=logger.run_id, client=logger.experiment)

    class Net(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer = linear()
            self.example_input_array = torch.zeros(2, 3)

        def forward(self, x: Any) -> Any:
            return self.layer(x)

        def training_step(self, batch: Any, _: int) -> Any:
            return self(batch).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    logger = MLFlowLogger("training", tracking_uri=store.uri)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    fit = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=logger, callbacks=[LogSummary()], default_root_dir=tmp_path, **quiet
    )
    fit.fit(Net(), torch.utils.data.DataLoader(torch.zeros(2, 3)))
    assert store.client.get_run(logger.run_id).data.metrics["params/total"] == PARAMS
