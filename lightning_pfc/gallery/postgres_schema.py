"""The tables of a gallery in PostgreSQL with pgvector, and how they are made."""

from __future__ import annotations

VERSION = 1
LOCK = 0x50464347
"""Number of the advisory lock that writers hold: picture numbers become visible in their order, as indexes need it."""

TABLES = """
CREATE SCHEMA pfc_gallery;
SET LOCAL search_path TO pfc_gallery, public;
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE models (
    id INTEGER PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    sha256 TEXT NOT NULL UNIQUE, width INTEGER NOT NULL CHECK (width > 0), source TEXT NOT NULL
);
CREATE TABLE identities (
    id BIGINT PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    name TEXT COLLATE "C" NOT NULL UNIQUE, metadata JSONB NOT NULL DEFAULT '{}'
);
CREATE TABLE pictures (
    id BIGINT PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    identity BIGINT NOT NULL REFERENCES identities (id) ON DELETE CASCADE,
    source TEXT NOT NULL DEFAULT '',
    digest TEXT NOT NULL,
    UNIQUE (identity, digest)
);
CREATE TABLE vectors (
    model INTEGER NOT NULL REFERENCES models (id) ON DELETE CASCADE,
    picture BIGINT NOT NULL REFERENCES pictures (id) ON DELETE CASCADE,
    vector vector NOT NULL,
    PRIMARY KEY (model, picture)
);
CREATE TABLE previews (picture BIGINT PRIMARY KEY REFERENCES pictures (id) ON DELETE CASCADE, image BYTEA NOT NULL);
CREATE TABLE removals (id BIGINT PRIMARY KEY GENERATED ALWAYS AS IDENTITY, picture BIGINT NOT NULL);
CREATE TABLE answers (
    key TEXT PRIMARY KEY, request TEXT NOT NULL, answer TEXT NOT NULL, at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE FUNCTION picture_removed() RETURNS trigger LANGUAGE plpgsql SET search_path = pfc_gallery AS $$
BEGIN
    INSERT INTO removals (picture) VALUES (old.id);
    RETURN old;
END $$;
CREATE TRIGGER picture_removed AFTER DELETE ON pictures FOR EACH ROW EXECUTE FUNCTION picture_removed();
"""
