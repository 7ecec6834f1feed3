"""PartialFCModule: a backbone of timm, a neck and a Partial FC head as one LightningModule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_pfc.checked import check_arguments
from lightning_pfc.checkpoint.load_module import load_module
from lightning_pfc.data.mixing import MixedBatch
from lightning_pfc.data.preprocessing import METADATA_KEY, Preprocessing
from lightning_pfc.heads.partial_fc import PartialFC, iter_heads
from lightning_pfc.heads.softmax.top_classes import TopClasses
from lightning_pfc.heads.target_cosines import target_cosines
from lightning_pfc.hyperparameters import NOT_PLAIN, head_arguments, to_plain
from lightning_pfc.losses import Loss
from lightning_pfc.models.backbone import as_input_size, create_backbone, native_input_size, output_width
from lightning_pfc.models.compiled import save_under_plain_names
from lightning_pfc.models.layers import layers_of
from lightning_pfc.models.neck import create_neck
from lightning_pfc.models.reviewed import MODULE_ARGUMENTS, check_sizes, module_arguments, review_backbone
from lightning_pfc.optim.factory import create_optimizer, create_scheduler
from lightning_pfc.optim.lr_scaling import describe_lr
from lightning_pfc.training_data import class_counts, global_batch_size
from lightning_pfc.validation import ClosedSetEvaluation, Evaluation, make_evaluations


class PartialFCModule(L.LightningModule):
    """Images -> backbone -> neck -> embedding, and a loss over all classes of all ranks.

    Train it with ``Trainer(strategy="pfc")``; on one process any strategy does. Every argument is a name, a number or a
    collection of those, and is stored in checkpoints, so ``PartialFCModule.load_from_checkpoint(path)`` needs nothing
    else (a backbone given as a module is not stored: pass it again).

    To change a part, override the method that makes it; each is called once, by ``__init__``, in this order:

    * :meth:`make_backbone`, :meth:`make_neck`, :meth:`make_head`: another network, another head;
    * :meth:`training_loss`: what is done with embeddings and batch, for instance the sum of two heads;
    * :meth:`head_labels`: where the labels of ``head`` are in a batch, for centers that are kept on the host;
    * :meth:`configure_optimizers`, as in any LightningModule.

    Logged names, the same on every rank: ``train/loss`` (global mean), ``train/target_cosine`` (mean cosine of a sample
    to its own center, per epoch; of a head other than ``head``, ``train/target_cosine/`` and its name), learning rates
    by callback; ``val/...`` and ``test/...`` as in :mod:`lightning_pfc.validation`.

    Args:
        backbone: a name of timm, or a module that maps images (B, C, H, W) to features (B, F). For vectors (B, K) begin
            it with ``nn.Flatten()``, and give ``input_size=(1, 1, K)``.
        num_classes: C.
        embedding_dim: D.
        loss: a loss of :mod:`lightning_pfc.losses`, its name, or a mapping with ``name`` and arguments.
        head: arguments of :class:`~lightning_pfc.PartialFC` by name, such as ``sample_rate``, ``sampler`` or ``seed``.
        sample_rate: short for ``head={"sample_rate": ...}``, and goes before it: share of the classes in a training
            step, in [0, 1]; 1, the default, is the exact softmax.
        seed: short for ``head={"seed": ...}``, and goes before it: of the initial centers and the sampled negatives.
        neck: "bn", "linear" or "none", see :func:`~lightning_pfc.models.neck.create_neck`.
        dropout: before the neck's linear layer.
        input_size: (C, H, W) of the images, (H, W) or one number for colour images; None: the backbone's own.
        pretrained: start from timm's pretrained weights.
        backbone_options: further arguments of ``timm.create_model``.
        channels_last: keep images and backbone in that memory format, which convolutions prefer.
        optimizer: ``name``, ``lr`` and more, see :func:`~lightning_pfc.optim.factory.create_optimizer`. The row-sparse
            form is the default when ``sample_rate`` < 1.
        scheduler: ``name`` and arguments, see :func:`~lightning_pfc.optim.factory.create_scheduler`; None: a constant
            rate. Its length comes from the trainer and the data.
        preprocessing: how pictures are made ready for this model, a
            :class:`~lightning_pfc.data.preprocessing.Preprocessing` or its mapping. ``fit`` takes it from the data
            module, and checkpoints keep it.

    Attributes:
        predict_top: how many classes ``Trainer.predict`` tells of each image; 0, the default, gives embeddings.

    Raises:
        ValueError, TypeError: for names that do not exist and numbers out of range.
    """

    backbone: nn.Module
    neck: nn.Module
    head: PartialFC

    def __init__(
        self,
        *,
        backbone: str | nn.Module,
        num_classes: int,
        embedding_dim: int = 512,
        loss: Loss | str | dict[str, Any] = "ArcFace",
        head: Mapping[str, Any] | None = None,
        sample_rate: float | None = None,
        seed: int | None = None,
        neck: str = "bn",
        dropout: float = 0.0,
        input_size: int | Sequence[int] | None = None,
        pretrained: bool = False,
        backbone_options: dict[str, Any] | None = None,
        channels_last: bool = False,
        optimizer: dict[str, Any] | None = None,
        scheduler: dict[str, Any] | None = None,
        preprocessing: Preprocessing | Mapping[str, Any] | None = None,
        head_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_arguments(PartialFCModule, self._not_made_by_a_subclass(locals()))
        short = ["sample_rate", "seed", "head_options"]  # of head, where they are kept
        self.save_hyperparameters(ignore=[*short, *(["backbone"] if isinstance(backbone, nn.Module) else [])])
        options = head_arguments(head, sample_rate, seed, head_options)
        self.hparams["head"] = {name: value for name, value in options.items() if to_plain(value) is not NOT_PLAIN}
        self.sample_rate, self.seed = options.pop("sample_rate"), options.pop("seed")
        self._keep_plain_hyperparameters()
        self.embedding_dim = embedding_dim
        self.num_classes = num_classes
        self.channels_last = channels_last
        self.optimizer_config = dict(optimizer or {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4})
        self.scheduler_config = None if scheduler is None else dict(scheduler)
        self._options = dict(backbone_options or {})
        self.preprocessing = _record(preprocessing)
        self.training_options: dict[str, Any] = {}  # compared when a run goes on

        self.backbone = self.make_backbone(backbone, as_input_size(input_size), pretrained)
        self.input_size = as_input_size(input_size) or native_input_size(self.backbone)
        if channels_last:
            self.backbone = self.backbone.to(memory_format=torch.channels_last)
        self.neck = self.make_neck(neck, output_width(self.backbone, self.input_size), dropout)
        self.head = self.make_head(loss, options)
        save_under_plain_names(self)
        self.evaluations: list[Evaluation] = []
        self.predict_top = 0

    def _not_made_by_a_subclass(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments but for those of parts that a subclass makes, which may be what it likes, and of the head."""
        makers = {"backbone": "make_backbone", "neck": "make_neck", "loss": "make_head"}
        own = {name for name, maker in makers.items() if getattr(type(self), maker) is getattr(PartialFCModule, maker)}
        others = {*makers, "head"} - own
        return {name: value for name, value in given.items() if name not in others}

    # --- the parts, to be overridden ----------------------------------------------------------------------------------

    def make_backbone(
        self, backbone: str | nn.Module, input_size: tuple[int, int, int] | None, pretrained: bool
    ) -> nn.Module:
        """Images (B, C, H, W) -> features (B, F). By default: any model of timm by its name, or the module as it is."""
        if isinstance(backbone, nn.Module):
            return backbone
        review_backbone(backbone, self._options)
        return create_backbone(backbone, input_size=input_size, pretrained=pretrained, options=self._options)

    def make_neck(self, name: str, in_features: int, dropout: float) -> nn.Module:
        """Features (B, F) -> embeddings (B, D); F is what the backbone really gives."""
        return create_neck(name, in_features, self.embedding_dim, dropout=dropout)

    def make_head(self, loss: Loss | str | Mapping[str, Any], options: dict[str, Any]) -> PartialFC:
        """The head that evaluation and the default :meth:`training_loss` use; ``options`` but for rate and seed."""
        return PartialFC(
            embedding_dim=self.embedding_dim,
            num_classes=self.num_classes,
            loss=loss,
            sample_rate=self.sample_rate,
            seed=self.seed,
            **options,
        )

    def training_loss(self, embeddings: Tensor, batch: Sequence[Any]) -> Tensor:
        """The loss of the global batch from this rank's embeddings (b, D) and batch; the default is the head's.

        A batch is (images, labels, ...): a second head takes its labels from further entries. A batch of mixed
        images has two labels for each.
        """
        second = (batch.other, batch.share) if isinstance(batch, MixedBatch) else ()
        loss: Tensor = self.head(embeddings, batch[1], *second)
        return loss

    # --- steps --------------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        """Images (b, C, H, W) -> embeddings (b, D), not normalised."""
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        embeddings: Tensor = self.neck(self.backbone(images))
        return embeddings

    def head_labels(self, batch: Any) -> tuple[Tensor, Tensor | None] | None:
        """Labels (b,) of a batch that :attr:`head` will be given, and second ones or None; None where that is unknown.

        Override it with :meth:`training_step` where a batch is no sequence (images, labels, ...): the tensors
        themselves, the same that the head gets. None, on every rank alike, means that rows are not fetched ahead.
        """
        if isinstance(batch, MixedBatch):
            return batch.labels, batch.other
        if not isinstance(batch, list | tuple) or len(batch) < 2 or not isinstance(batch[1], Tensor):
            return None
        return batch[1], None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Centers of :attr:`head` on the host are fetched while the backbone runs."""
        labels = self.head_labels(batch) if self.head.reads_from_host else None
        if labels is not None:
            self.head.prepare(*labels)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """One step; the loss is the mean over the global batch and equal on all ranks."""
        images: Tensor = batch[0]
        with target_cosines(self) as cosines:
            loss = self.training_loss(self(images), batch)
        in_bar = not getattr(getattr(self._trainer, "progress_bar_callback", None), "reads_loss", False)
        self.log("train/loss", loss, prog_bar=in_bar, on_step=True, on_epoch=False, batch_size=len(images))
        for name, cosine in cosines.items():
            word = "train/target_cosine" if name == "head" else f"train/target_cosine/{name}"
            self.log(word, cosine.mean(), on_step=False, on_epoch=True, sync_dist=True, batch_size=len(images))
        return loss

    def setup(self, stage: str) -> None:
        """Learn from the data module how pictures are made ready; say so where a model has learnt it otherwise."""
        found = getattr(getattr(self.trainer, "datamodule", None), "preprocessing", None)
        if not isinstance(found, Preprocessing):
            return
        if stage != "fit":
            found = found.changed(flip=self.preprocessing.flip) if self.preprocessing else found
        if self.preprocessing is not None and self.preprocessing != found:
            rank_zero_warn(self.preprocessing.difference(found))
        if stage == "fit" or self.preprocessing is None:
            self.preprocessing = found
        if stage == "fit":
            self.hparams[METADATA_KEY] = found.to_config()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say where the checkpoint's pictures were made ready in another way than those of this run."""
        stored = _record(checkpoint.get("hyper_parameters", {}).get(METADATA_KEY))
        if stored is None or self.preprocessing is None or self._trainer is None:
            return
        if self.trainer.state.fn != "fit":  # mirror images are added by the model, all else is done by the data
            self.preprocessing = self.preprocessing.changed(flip=stored.flip)
        if stored != self.preprocessing:
            rank_zero_warn(stored.difference(self.preprocessing))

    def on_fit_start(self) -> None:
        """Tell the heads how many images each class has, where a sampler wants to know."""
        for name, head in iter_heads(self):
            if head.sampler.needs_counts:
                head.set_class_counts(class_counts(self.trainer, name, head))

    def on_validation_start(self) -> None:
        """Choose the metrics that the data module declares: closed-set classification or open-set verification."""
        self.evaluations = make_evaluations(self, "val")

    def on_test_start(self) -> None:
        """As :meth:`on_validation_start`."""
        self.evaluations = make_evaluations(self, "test")

    def validation_step(self, batch: Sequence[Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Embed a batch for the evaluation that this loader belongs to."""
        self._evaluation(dataloader_idx).update(self, batch)

    def test_step(self, batch: Sequence[Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """As :meth:`validation_step`."""
        self._evaluation(dataloader_idx).update(self, batch)

    def on_validation_epoch_end(self) -> None:
        """Log the results; a collective over all ranks."""
        self._log_evaluations()

    def on_test_epoch_end(self) -> None:
        """As :meth:`on_validation_epoch_end`."""
        self._log_evaluations()

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor | TopClasses:
        """Embeddings of a batch, a tensor of images or a sequence that starts with one; or their best classes.

        With :attr:`predict_top` set to k it gives the k best of all classes of all ranks, best first. That is a
        collective: every rank must have as many batches.
        """
        images: Tensor = batch if isinstance(batch, Tensor) else batch[0]
        if not self.predict_top:
            embeddings: Tensor = self(images)
            return embeddings
        embeddings = self(images) if self.preprocessing is None else self.preprocessing.embed(self, images)
        return self.head.top_classes(embeddings.float(), self.predict_top)

    def _evaluation(self, dataloader_idx: int) -> Evaluation:
        if dataloader_idx >= len(self.evaluations):  # a loader the data module does not describe
            self.evaluations.append(ClosedSetEvaluation(self, f"{self.evaluations[0].name}{dataloader_idx}"))
        return self.evaluations[dataloader_idx]

    def _log_evaluations(self) -> None:
        for evaluation in self.evaluations:
            for name, value in evaluation.compute().items():
                self.log(name, value, prog_bar=name.endswith(("/accuracy", "/top1")), sync_dist=True)

    # --- optimization -------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """One optimizer over named parameter groups, and a schedule that is stepped with it."""
        trainer = self.trainer
        trainer.fit_loop.setup_data()  # the loader tells the batch and the steps; done already unless max_epochs is -1
        total_steps = trainer.estimated_stepping_batches
        batch = global_batch_size(trainer)
        config = self.optimizer_config
        # Without sampling all centers are touched anyway: the same numbers, and torch's own kernels.
        layers = layers_of(self.backbone) if config.get("layer_decay", 1.0) != 1.0 else None
        optimizer = create_optimizer(self, config, row_sparse=self._samples(), global_batch=batch, layers=layers)
        if batch is not None:
            rank_zero_info(
                describe_lr(
                    float(config["lr"]),
                    global_batch=batch,
                    reference_batch=config.get("reference_batch"),
                    rule=config.get("scale_rule", "linear"),
                )
            )
        if self.scheduler_config is None:
            return optimizer
        if self.scheduler_config["name"] in ("polynomial", "cosine"):
            self.training_options["steps of the schedule (trainer.max_epochs, trainer.max_steps)"] = total_steps
        scheduler = create_scheduler(
            optimizer,
            self.scheduler_config,
            total_steps=total_steps,
            steps_per_epoch=trainer.num_training_batches / trainer.accumulate_grad_batches,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _samples(self) -> bool:
        return any(head.is_subsampling for _, head in iter_heads(self))

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in Lightning; it also opens the folder that several ranks have written, on one process.

        The file sets what :mod:`lightning_pfc.models.reviewed` lists: nothing else is opened or fetched for its word.
        Centers that training kept in ``row_folder`` are in memory, unless ``head_options`` are given here.

        Raises:
            CheckpointError: naming a damaged file, or what it may not set and what to say instead.
        """
        return load_module(cls, checkpoint_path, *args, review=cls._review, **kwargs)

    @classmethod
    def _review(cls, checkpoint: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments to build with: what the file may set, and what the user says."""
        own_network = cls.make_backbone is PartialFCModule.make_backbone
        known = MODULE_ARGUMENTS if own_network else MODULE_ARGUMENTS - {"backbone", "backbone_options"}
        values = module_arguments(checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {}), said, known)
        sizes = {**values, "backbone": values.get("backbone") if own_network and "backbone" not in said else None}
        if cls.make_neck is not PartialFCModule.make_neck:
            sizes["embedding_dim"] = None
        check_sizes(sizes, checkpoint["state_dict"])
        return values

    # --- hyper-parameters ---------------------------------------------------------------------------------------------

    def _keep_plain_hyperparameters(self) -> None:
        """Store names and numbers only: a checkpoint must load with ``weights_only=True``."""
        plain = {name: to_plain(value) for name, value in self.hparams.items()}
        left_out = [name for name, value in plain.items() if value is NOT_PLAIN]
        self.save_hyperparameters({k: v for k, v in plain.items() if k not in left_out}, ignore=left_out)


def _record(value: Preprocessing | Mapping[str, Any] | None) -> Preprocessing | None:
    return value if value is None or isinstance(value, Preprocessing) else Preprocessing.from_config(value)
