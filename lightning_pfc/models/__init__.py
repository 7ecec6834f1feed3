"""Backbones of the field, registered with timm by importing this package: ``timm.create_model("iresnet50")``."""

from __future__ import annotations

from lightning_pfc.models.embedder import Embedder
from lightning_pfc.models.face_vit import FaceViT
from lightning_pfc.models.glyphnet import GlyphNet
from lightning_pfc.models.inception_resnet import InceptionResNetV1
from lightning_pfc.models.iresnet import IResNet
from lightning_pfc.models.layers import layers_of
from lightning_pfc.models.mobilefacenet import MobileFaceNet

__all__ = ["Embedder", "FaceViT", "GlyphNet", "IResNet", "InceptionResNetV1", "MobileFaceNet", "layers_of"]
