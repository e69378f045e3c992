"""Twenty steps under the real trainers, against torch.optim.AdamW in the same loop, and a resume that is exact.

Run by pytest where transformers, accelerate and lightning are installed; needs no network and no GPU. All three are in the `test`
extra, since their wheels are small beside torch's. As pip names them: transformers 5.24 13.5 MB, accelerate 1.15 0.4 MB, lightning
2.6 0.8 MB; of what they pull, hf-xet 4.3 MB and tokenizers 3.4 MB are the largest, each of the others below 1 MB.
"""

import copy

import pytest
import torch

import gpuopt.torch

pytestmark = pytest.mark.slow
CLASSES = {"torch": torch.optim.AdamW, "gpuopt": gpuopt.torch.AdamW}
# None is the default of both, and eps is large enough for the losses to show it.
CHOSEN = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-3}
OPTIONS = {**CHOSEN, "weight_decay": 0.02}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))

    def forward(self, x, labels):
        return {"loss": (self.layers(x) - labels).square().mean()}


def examples():
    make = torch.Generator().manual_seed(1)
    rows = torch.randn(80, 9, generator=make)
    return [{"x": row[:8], "labels": row[8:]} for row in rows]


def run_transformers(make, folder, resume=None):
    import transformers

    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=20, save_steps=10, logging_steps=1, per_device_train_batch_size=4,
        use_cpu=True, report_to=[], disable_tqdm=True, weight_decay=0.02, seed=0,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=Model(), args=arguments, train_dataset=examples(), optimizer_cls_and_kwargs=(make, CHOSEN)
    )
    trainer.train(resume_from_checkpoint=resume)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return losses, list(trainer.model.parameters())


def accelerate_steps(accelerator, model, opt, first, last):
    losses, rows = [], examples()
    for step in range(first, last):
        batch = torch.utils.data.default_collate(rows[4 * step : 4 * step + 4])
        loss = model(**batch)["loss"]
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
    return losses


def test_transformers(tmp_path):
    theirs, _ = run_transformers(CLASSES["torch"], tmp_path / "torch")
    losses, whole = run_transformers(CLASSES["gpuopt"], tmp_path / "gpuopt")
    assert len(losses) == 20
    assert losses == pytest.approx(theirs, abs=1e-4)
    _, resumed = run_transformers(CLASSES["gpuopt"], tmp_path / "gpuopt", str(tmp_path / "gpuopt" / "checkpoint-10"))
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_accelerate(tmp_path):
    import accelerate

    def start(make):
        accelerator = accelerate.Accelerator(cpu=True)
        model = Model()
        return accelerator, *accelerator.prepare(model, make(model.parameters(), **OPTIONS))

    theirs = accelerate_steps(*start(CLASSES["torch"]), 0, 20)
    accelerator, model, opt = start(CLASSES["gpuopt"])
    losses = accelerate_steps(accelerator, model, opt, 0, 10)
    accelerator.save_state(str(tmp_path))
    losses += accelerate_steps(accelerator, model, opt, 10, 20)
    assert losses == pytest.approx(theirs, abs=1e-4)
    whole = copy.deepcopy(list(model.parameters()))
    accelerator, model, opt = start(CLASSES["gpuopt"])
    accelerator.load_state(str(tmp_path))
    assert accelerate_steps(accelerator, model, opt, 10, 20) == losses[10:]
    assert all(torch.equal(a, b) for a, b in zip(whole, model.parameters(), strict=True))


def run_lightning(make, folder, resume=None):
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.losses = Model(), []

        def training_step(self, batch, index):
            loss = self.model(**batch)["loss"]
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return make(self.parameters(), **OPTIONS)

    saves = lightning.pytorch.callbacks.ModelCheckpoint(folder, "{step}", every_n_epochs=1, save_top_k=-1)
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, callbacks=[saves], default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = Module()
    loader = torch.utils.data.DataLoader(examples(), batch_size=8)  # ten steps an epoch
    trainer.fit(module, loader, ckpt_path=resume)
    return module


def test_lightning(tmp_path):
    theirs = run_lightning(CLASSES["torch"], tmp_path / "torch").losses
    whole = run_lightning(CLASSES["gpuopt"], tmp_path / "gpuopt")
    assert len(whole.losses) == 20
    assert whole.losses == pytest.approx(theirs, abs=1e-4)
    resumed = run_lightning(CLASSES["gpuopt"], tmp_path / "again", str(tmp_path / "gpuopt" / "step=10.ckpt"))
    assert resumed.losses == whole.losses[10:]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
