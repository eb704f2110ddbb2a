"""Object storage on loopback: real servers, each with a bucket."""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from functools import partial
from http.server import HTTPServer
from threading import Thread
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, urlencode, urlsplit
from urllib.request import urlopen

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Place = Callable[[Path], str]
    """Folder of a test → URL of a store for it alone."""

BUCKET = "team"


@contextmanager
def s3_server() -> Iterator[str]:
    """Address of an S3 server; this process may use it. All of a process hold the same objects."""
    import boto3
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        }.items():
            patched.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield f"{host}:{port}"
    running.stop()


@contextmanager
def gs_server() -> Iterator[str]:
    """Address of a server of Google's storage API."""
    from gcp_storage_emulator.handlers.buckets import create_bucket
    from gcp_storage_emulator.server import RequestHandler
    from gcp_storage_emulator.storage import Storage

    storage = Storage(use_memory_fs=True)
    create_bucket(BUCKET, storage)
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    server = HTTPServer(("127.0.0.1", 0), partial(RequestHandler, storage))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield "{}:{}".format(*server.server_address)
    server.shutdown()
    server.server_close()
    thread.join()


def url_of(scheme: str, address: str, prefix: str) -> str:
    """Of a store in a server's bucket."""
    options = {"endpoint_override": address, "scheme": "http", "anonymous": "true"}
    return f"{scheme}://{BUCKET}/{prefix}" + (f"?{urlencode(options, safe=':')}" if scheme == "gs" else "")


@contextmanager
def place_of(scheme: str) -> Iterator[Place]:
    """Of a store that is a folder (`file`), or on a server for as long as this lasts."""
    if scheme == "file":
        yield lambda folder: (folder / "shared").as_uri()
        return
    with (s3_server if scheme == "s3" else gs_server)() as address:
        yield lambda folder: url_of(scheme, address, folder.name)


def keys(url: str) -> list[str]:
    """Names behind the prefix, without those that mark folders; as they can be had without the project."""
    prefix = f"{urlsplit(url).path[1:]}/"
    if url.startswith("s3"):
        import boto3

        pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        names = [item["Key"] for page in pages for item in page.get("Contents", [])]
    else:
        listed = json.loads(_gs(url, f"o?{urlencode({'prefix': prefix})}"))
        names = [item["name"] for item in listed.get("items", [])]
    return [name.removeprefix(prefix) for name in sorted(names) if not name.endswith("/")]


def objects(url: str) -> dict[str, bytes]:
    """What lies there: name behind the prefix → content."""
    return {name: content_of(url, name) for name in keys(url)}


def content_of(url: str, name: str) -> bytes:
    path = f"{urlsplit(url).path[1:]}/{name}"
    if url.startswith("s3"):
        import boto3

        return boto3.client("s3").get_object(Bucket=BUCKET, Key=path)["Body"].read()
    return _gs(url, f"o/{quote(path, safe='')}?alt=media")


def put(url: str, name: str, content: bytes | None) -> None:
    """Write an object, or delete it."""
    path = f"{urlsplit(url).path[1:]}/{name}"
    if url.startswith("s3"):
        import boto3

        client = boto3.client("s3")
        if content is None:
            client.delete_object(Bucket=BUCKET, Key=path)
        else:
            client.put_object(Bucket=BUCKET, Key=path, Body=content)
        return
    from pyarrow import fs

    # The server refuses an empty object by a plain request.
    client = fs.GcsFileSystem(endpoint_override=_address(url), scheme="http", anonymous=True)
    if content is None:
        client.delete_file(f"{BUCKET}/{path}")
    else:
        with client.open_output_stream(f"{BUCKET}/{path}", compression=None) as file:
            file.write(content)


def _address(url: str) -> str:
    return dict(parse_qsl(urlsplit(url).query))["endpoint_override"]


def _gs(url: str, what: str) -> bytes:
    with urlopen(f"http://{_address(url)}/storage/v1/b/{BUCKET}/{what}") as answer:
        return answer.read()
