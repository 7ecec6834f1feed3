"""Protocols that judge embeddings: verification, templates, all pairs, identification."""

from __future__ import annotations
