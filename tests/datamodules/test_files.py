"""Finding, downloading and checking data files, with a real server on the loopback interface."""

import gzip
import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from datamodules.files import MAX_BYTES, data_directory, obtain, read_bytes
from datamodules.mnist_files import SHA256, mnist_files, read_idx
from rbp_lightning import UserError
from tests.limits import NO_FILES, bounded, make_no_file

CONTENT = b"some data" * 1000
SUM = hashlib.sha256(CONTENT).hexdigest()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    handler = partial(QuietHandler, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield tmp_path / "served", f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_a_file_is_found_in_any_folder(tmp_path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "file").write_bytes(CONTENT)
    assert obtain({"file": SUM}, [tmp_path / "a", tmp_path / "b"], []) == [tmp_path / "b" / "file"]


def test_a_missing_file_is_downloaded(tmp_path, server) -> None:
    served, url = server
    (served / "file").write_bytes(CONTENT)
    (path,) = obtain({"file": SUM}, [tmp_path / "data"], [url + "/nowhere", url])
    assert path.read_bytes() == CONTENT
    assert list((tmp_path / "data").iterdir()) == [path]


def test_a_download_with_a_wrong_checksum_is_refused_and_removed(tmp_path, server) -> None:
    served, url = server
    (served / "file").write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match="could not be downloaded"):
        obtain({"file": SUM}, [tmp_path / "data"], [url])
    assert list((tmp_path / "data").iterdir()) == []


def test_without_a_network_the_error_names_the_remedy(tmp_path) -> None:
    with pytest.raises(UserError, match=r"^Missing file.* into .*data.* data_dir"):
        obtain({"file": SUM}, [tmp_path / "data"], ["http://127.0.0.1:9"])


def test_all_missing_files_are_named_with_their_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("datamodules.mnist_files.URLS", ["http://127.0.0.1:9"])
    first, *others = SHA256
    (tmp_path / "mnist" / "raw").mkdir(parents=True)
    (tmp_path / "mnist" / "raw" / first).write_bytes(b"corrupt, but not missing")
    with pytest.raises(UserError, match=f"{first} is corrupt"):
        mnist_files(list(SHA256), str(tmp_path))
    (tmp_path / "mnist" / "raw" / first).unlink()
    with pytest.raises(UserError) as error:
        mnist_files([*others, first], str(tmp_path))
    assert all(name in str(error.value) for name in SHA256)
    assert f"into {tmp_path}/mnist/raw" in str(error.value)
    assert str(error.value).count("\n") == 0


def test_files_without_a_url_are_reported_without_a_download(tmp_path) -> None:
    with pytest.raises(UserError, match=rf"^Missing file.*{tmp_path}"):
        obtain({"file": SUM}, [tmp_path], [])


def test_an_interrupted_download_leaves_no_file(tmp_path, server) -> None:
    """The server sends only part of the content."""

    class Breaks(QuietHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[:100])

    with ThreadingHTTPServer(("127.0.0.1", 0), Breaks) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match="could not be downloaded"):
            obtain({"file": SUM}, [tmp_path / "data"], [f"http://127.0.0.1:{http.server_port}"])
        http.shutdown()
    assert list((tmp_path / "data").iterdir()) == []


def test_a_corrupt_file_is_refused_and_kept(tmp_path) -> None:
    (tmp_path / "file").write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match="is corrupt"):
        obtain({"file": SUM}, [tmp_path], [])
    assert (tmp_path / "file").exists()


def test_a_truncated_mnist_file_is_refused(tmp_path) -> None:
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte\.gz is corrupt"):
        mnist_files(["train-labels-idx1-ubyte.gz"], str(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no gzip",
        gzip.compress(b"", mtime=0),  # a time would give the test another name in every process
        gzip.compress(b"\x00\x00\x08\x01", mtime=0),
        gzip.compress(b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00", mtime=0),
        gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x05ab", mtime=0),
        gzip.compress(bytes(1000), mtime=0)[:-20],
        gzip.compress(bytes(1000), mtime=0)[:15] + b"\xff" * 10,
    ],
)
def test_files_that_are_not_idx_files_are_refused(tmp_path, content) -> None:
    (tmp_path / "file.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"file\.gz is not a gzipped IDX file"):
        read_idx(tmp_path / "file.gz")


def idx(*shape: int) -> bytes:
    """The header of an IDX file."""
    return bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)


@pytest.mark.parametrize(
    "shape",
    [(2**32 - 1,) * 3, (2**31, 2, 1), (2**16, 2**16), (0,), (0, 28, 28), (2**32 - 1, 2**32 - 1, 0), (), (1,) * 255],
)
def test_invalid_and_too_large_idx_headers_are_refused(tmp_path, shape) -> None:
    (tmp_path / "file.gz").write_bytes(gzip.compress(idx(*shape) + bytes(100), mtime=0))
    with bounded(10, 5), pytest.raises(UserError, match=r"file\.gz is not a gzipped IDX file"):
        read_idx(tmp_path / "file.gz")


@pytest.mark.parametrize("members", [1, 5])
def test_a_gzip_bomb_is_decompressed_only_up_to_the_size_in_the_header(tmp_path, members) -> None:
    large = gzip.compress(bytes(2**26), compresslevel=1, mtime=0)
    (tmp_path / "file.gz").write_bytes(gzip.compress(idx(10, 28, 28), mtime=0) + large * members)
    with bounded(20, 5), pytest.raises(UserError, match=r"file\.gz is not a gzipped IDX file .*holds more"):
        read_idx(tmp_path / "file.gz")


def test_a_short_file_takes_no_memory_for_the_rest_that_its_header_says(tmp_path) -> None:
    (tmp_path / "file.gz").write_bytes(gzip.compress(idx(MAX_BYTES) + bytes(100), mtime=0))
    with bounded(20, 5), pytest.raises(UserError, match=r"file\.gz is not a gzipped IDX file .*holds less"):
        read_idx(tmp_path / "file.gz")


@pytest.mark.parametrize("kind", NO_FILES)
def test_paths_that_are_not_regular_files_are_refused_at_once(tmp_path, kind, server) -> None:
    """Also if the file could be downloaded."""
    served, url = server
    (served / "file").write_bytes(CONTENT)
    make_no_file(tmp_path / "file", kind)
    for urls in ([], [url]):
        with bounded(10, 5), pytest.raises(UserError, match=f"{tmp_path}/file is not a file"):
            obtain({"file": SUM}, [tmp_path], urls)


def test_a_file_that_cannot_be_read_is_named(tmp_path) -> None:
    (tmp_path / "file").symlink_to("/proc/self/mem")  # not even root can read its first page
    with pytest.raises(UserError, match=f"{tmp_path}/file cannot be read"):
        obtain({"file": SUM}, [tmp_path], [])


def test_a_file_above_the_size_limit_is_refused(tmp_path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    assert read_bytes(tmp_path / "file", len(CONTENT)) == CONTENT
    with pytest.raises(UserError, match=f"{tmp_path}/file.* {len(CONTENT) - 1} bytes"):
        read_bytes(tmp_path / "file", len(CONTENT) - 1)


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_an_impossible_file_name_is_reported_as_missing(tmp_path, name) -> None:
    with pytest.raises(UserError, match=r"^Missing "):
        obtain({name: SUM}, [tmp_path], ["http://127.0.0.1:9"])


def test_the_data_folder_is_the_argument_or_the_variable_or_data(monkeypatch) -> None:
    monkeypatch.delenv("RBP_DATA_DIR", raising=False)
    assert str(data_directory(None)) == "data"
    monkeypatch.setenv("RBP_DATA_DIR", "elsewhere")
    assert str(data_directory(None)) == "elsewhere"
    assert str(data_directory("given")) == "given"
