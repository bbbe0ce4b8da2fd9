"""One node for the session: a shop in SQLite, prepared and served on free ports."""

import os
import pathlib
import socket
import sqlite3
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LARDER = pathlib.Path(os.environ.get("LARDER", ROOT / "build" / "larder"))

SHOP = """
CREATE TABLE product(id INTEGER PRIMARY KEY, name TEXT NOT NULL, price INTEGER NOT NULL,
                     category TEXT NOT NULL);
INSERT INTO product VALUES (1, 'Anchor', 1250, 'boats'), (2, 'Bucket', 499, 'garden');
"""

CONFIG = '''
[node]
listen   = ["127.0.0.1:{port}"]
admin    = "127.0.0.1:{admin}"
data_dir = "{folder}/data"

[source.shop]
url = "sqlite:{folder}/shop.db"

[cache.product]
key      = "product:{{id:int}}"
source   = "shop"
load     = "SELECT id, name, price, category FROM product WHERE id = :id"
store    = """INSERT INTO product(id, name, price, category) VALUES (:id, :name, :price, :category)
              ON CONFLICT(id) DO UPDATE SET name = :name, price = :price, category = :category"""
remove   = "DELETE FROM product WHERE id = :id"
write    = "through"
ttl      = "5m"
near     = true
depends_on = ["product(id -> id)"]
'''


class Node:
    """A running node: where it is, and the database behind it."""

    def __init__(self, port, admin, folder):
        self.host, self.port, self.admin, self.folder = "127.0.0.1", port, admin, folder

    def price(self):
        """The price of product 1 as the database has it."""
        with sqlite3.connect(self.folder / "shop.db", timeout=10) as shop:
            return shop.execute("SELECT price FROM product WHERE id = 1").fetchone()[0]

    def environment(self):
        return {**os.environ, "LARDER_HOST": self.host, "LARDER_PORT": str(self.port)}


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def wait_for_ping(process, port, log, seconds=20):
    """Asks until the node answers; a node that ends or stays silent fails with its log."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                if connection.recv(7) == b"+PONG\r\n":
                    return
        except OSError:
            pass
        time.sleep(0.02)
    pytest.fail(f"larder serve did not answer on port {port}:\n{log.read_text()}")


@pytest.fixture(scope="session")
def node(tmp_path_factory):
    folder = tmp_path_factory.mktemp("node")
    port, admin = free_ports(2)
    with sqlite3.connect(folder / "shop.db") as shop:
        shop.executescript(SHOP)
    config = folder / "larder.toml"
    config.write_text(CONFIG.format(port=port, admin=admin, folder=folder))
    prepare = [LARDER, "source", "prepare", "--config", config, "shop"]
    done = subprocess.run(prepare, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"larder source prepare: {done.stdout}{done.stderr}"
    log = folder / "larder.log"
    with log.open("w") as out:
        process = subprocess.Popen([LARDER, "serve", "--config", config], stdout=out, stderr=out)
    try:
        wait_for_ping(process, port, log)
        yield Node(port, admin, folder)
    finally:
        process.terminate()
        try:
            code = process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
    assert code == 0, f"larder serve ended with {code}:\n{log.read_text()}"
