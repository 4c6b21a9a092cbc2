"""Has `vitag backfill` read from and write to a server that speaks S3, and `vitag model publish` write to it.

    python s3.py VITAG

`make formats` runs it with the packages of requirements.txt.
"""

import hashlib
import io
import json
import logging
import os
import pathlib
import subprocess
import sys

import boto3
import pyarrow.parquet
from moto.server import ThreadedMotoServer

FILES, LINES = 3, 40
MODEL = pathlib.Path(__file__).parents[2] / "models/vi-tagger/0.1.0"


def text(number):
    return f"Số {number} ở Huế."


def lines(file):
    numbers = range(file * LINES, (file + 1) * LINES)
    return "".join(json.dumps({"id": number, "text": text(number)}) + "\n" for number in numbers)


def run(endpoint, *command):
    credentials = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
    environment = os.environ | credentials | {"AWS_ENDPOINT": endpoint, "AWS_ALLOW_HTTP": "true"}
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)


def backfill(vitag, endpoint):
    arguments = ["--input", "s3://lake/articles/**/*.jsonl", "--output", "s3://lake/tagged"]
    return run(endpoint, vitag, "backfill", "--job", "s3", "--json", "--output-format", "parquet", *arguments)


def publish(vitag, endpoint, store):
    """A model as a folder and as one archive: both hold the manifest that the answer names."""
    manifest = (MODEL / "manifest.json").read_bytes()
    names = {"manifest.json", *json.loads(manifest)["files"]}
    for place in ["models/vi-tagger/0.1.0", "models/vi-tagger/0.1.0.tar.zst"]:
        told = run(endpoint, vitag, "model", "publish", str(MODEL), "--to", f"s3://lake/{place}")
        expected = {"uri": f"s3://lake/{place}", "version": "0.1.0", "sha256": hashlib.sha256(manifest).hexdigest()}
        assert told == expected, told
        if place.endswith(".tar.zst"):
            packed = store.get_object(Bucket="lake", Key=place)["Body"].read()
            listing = subprocess.run(["tar", "--zstd", "-t"], input=packed, check=True, stdout=subprocess.PIPE).stdout
            assert set(listing.decode().split()) == names, listing
        else:
            found = store.list_objects_v2(Bucket="lake", Prefix=f"{place}/")["Contents"]
            assert {item["Key"].rsplit("/")[-1] for item in found} == names, found
            body = store.get_object(Bucket="lake", Key=f"{place}/manifest.json")["Body"].read()
            assert body == manifest


def main(vitag):
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    store = boto3.client("s3", endpoint_url=endpoint, **keys)
    store.create_bucket(Bucket="lake")
    for file in range(FILES):
        store.put_object(Bucket="lake", Key=f"articles/2026/{file}.jsonl", Body=lines(file).encode())
    done = backfill(vitag, endpoint)
    assert (done["state"], done["records"]) == ("finished", FILES * LINES), done
    again = backfill(vitag, endpoint)
    assert (again["state"], again["records"]) == ("finished_before", 0), again
    found = [item["Key"] for item in store.list_objects_v2(Bucket="lake", Prefix="tagged/")["Contents"]]
    outputs = [key for key in found if key.endswith(".parquet")]
    assert len(outputs) == FILES, found
    texts = []
    for key in sorted(outputs):
        body = io.BytesIO(store.get_object(Bucket="lake", Key=key)["Body"].read())
        texts += pyarrow.parquet.read_table(body)["text"].to_pylist()
    assert texts == [text(number) for number in range(FILES * LINES)]
    publish(vitag, endpoint, store)
    server.stop()
    print(f"s3: {len(texts)} documents as they should be, and a model")


main(sys.argv[1])
