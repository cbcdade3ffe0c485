"""One rank's process: join the group, load the model, run the step loop."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import zmq

from coatcheck.arena import ArenaAddress, ArenaReader
from coatcheck.delivery.readiness import Readiness
from coatcheck.delivery.records import Ready
from coatcheck.engine.model.config import EngineConfig
from coatcheck.engine.model.embedding_book import EmbeddingBook
from coatcheck.engine.model.embedding_cache import EmbeddingCache
from coatcheck.engine.model.kv_cache import KVPool
from coatcheck.engine.model.kv_regions import Regions
from coatcheck.engine.model.null import NullRunner
from coatcheck.engine.model.positions import ModelPositions
from coatcheck.engine.model.runner import ModelRunner, Runner
from coatcheck.engine.model.schedule import Schedule
from coatcheck.engine.model_files import check_divides, model_config, read_config
from coatcheck.engine.ranks import auto_threshold
from coatcheck.engine.ranks.admission import Admission
from coatcheck.engine.ranks.auto import Auto
from coatcheck.engine.ranks.available import Available, agree
from coatcheck.engine.ranks.config import RankConfig
from coatcheck.engine.ranks.entry import EntryRole, EntrySockets
from coatcheck.engine.ranks.follower import FollowerRole
from coatcheck.engine.ranks.group import Group, join
from coatcheck.engine.ranks.loop import Rank, RankChannel, Role
from coatcheck.engine.ranks.object_broadcast import EntryExchange, FollowerExchange
from coatcheck.engine.ranks.plan_broadcast import PlanChannel
from coatcheck.engine.ranks.recorder import Recorder
from coatcheck.engine.ranks.settings import RankSettings
from coatcheck.engine.ranks.telemetry import Telemetry
from coatcheck.engine.ranks.trace import Trace
from coatcheck.engine.ranks.verify import VerifyingRunner
from coatcheck.engine.records import AutoRule, RanksReady
from coatcheck.engine.strategies.base import Exchange, Materializer
from coatcheck.engine.strategies.materialize import Materialize
from coatcheck.engine.strategies.materialize import no_arena as no_arena_here
from coatcheck.errors import CoatcheckError, ConfigError
from coatcheck.pixels import PixelTable
from coatcheck.process import die_with_parent, leave_signals_to_parent, set_name
from coatcheck.sockets import PrivateEndpoint, pull, push
from coatcheck.wire import send

log = logging.getLogger(__name__)

LINGER_MS = 2000  # how long a closing socket may still hand over what was sent


def run(settings: RankSettings, around: Callable[[Materializer, int], Materializer] | None = None) -> None:
    """Runs this rank until a plan says stop. ``around`` wraps materialization, given the rank (tests inject faults so).

    A CoatcheckError is logged and ends the process with status 1, whether groups were joined before it or not.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    set_name(f"coatcheck-rank{rank}")
    context = zmq.Context()
    try:
        check_divides(read_config(settings.engine.model), size)
        device = _device(settings.engine.device, size)
        if device.type == "cpu":
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // size))
        load = _loader(settings.engine)
        group = join(device, settings.ranks.group_timeout_s)
        if not _serve(settings, group, device, context, load, around):
            log.critical("rank %d: the lane did not end in time; the rank ends without it", rank)
            os._exit(1)  # its thread is inside a collective: neither groups nor sockets can be closed under it
        group.close()
    except CoatcheckError as error:
        # The groups' own threads may abort a process that is torn down orderly while its peers are gone.
        log.critical("rank %d ends: %s: %s", rank, type(error).__name__, error)
        os._exit(1)
    finally:
        context.destroy(linger=LINGER_MS)


def _serve(
    settings: RankSettings,
    group: Group,
    device: torch.device,
    context: zmq.Context[zmq.Socket[bytes]],
    load: Callable[[Group, torch.device], Any] | None,
    around: Callable[[Materializer, int], Materializer] | None,
) -> bool:
    reader, no_arena = _attach(settings.arena)
    available = agree(group.size, group.control, no_arena)
    engine = settings.engine
    config = model_config(engine.model)
    model = None if load is None else load(group, device)
    own = Materialize(
        positions=ModelPositions(config),
        image=config.image_token_id,
        video=config.video_token_id,
        merge=config.vision_config.spatial_merge_size,
        width=config.patch_width,
        view=reader.view if reader is not None else no_arena_here,
        table=_table(engine),
    )
    materialize = own if around is None else around(own, group.rank)
    auto = _calibrate(settings.ranks, group, own, available)
    trace = _trace(settings.ranks.trace, group.rank)
    recorder = Recorder(trace)
    channel = PlanChannel(group, recorder.broadcast)
    role: Role
    inline: Exchange
    background: Exchange
    if group.rank == 0:
        book = EmbeddingBook(limit=0, token_bytes=1)  # the null runner makes no embeddings
        if model is not None:
            row_bytes = model.config.text_config.hidden_size * model.dtype.itemsize
            book = EmbeddingBook(engine.embedding_cache_bytes, row_bytes)
        role = _entry(settings, group, context, channel, available, auto, recorder, book)
        inline, background = EntryExchange(group.control), EntryExchange(group.lane)
    else:
        role = _follower(group, context, channel)
        inline, background = FollowerExchange(group.control), FollowerExchange(group.lane)
    lane_reports = _reports(group, context)  # sockets belong to one thread each

    def failed(request: str, reason: str) -> None:
        log.warning("rank %d: request %s failed: %s", group.rank, request, reason)
        role.report(Ready(request, group.rank, reason))

    runner: Runner
    if model is None:
        vocabulary, step_s = config.text_config.vocab_size, engine.step_ms / 1e3
        runner = NullRunner(vocabulary, step_s, group.size, group.rank == 0, device, group.all_reduce)
    else:
        runner = _model_runner(engine, group, model, device, failed, recorder)
    # To the front end; sockets belong to one thread each.
    metrics, returns, lane_returns = (push(context, settings.events) for _ in range(3))
    telemetry = Telemetry(group.rank, recorder.registry, metrics)
    rank = Rank(
        rank=group.rank,
        role=role,
        inline=RankChannel(inline, role.report, lambda returned: send(returns, returned)),
        background=RankChannel(
            background, lambda report: send(lane_reports, report), lambda returned: send(lane_returns, returned)
        ),
        available=available,
        reader=reader,
        materialize=materialize,
        runner=VerifyingRunner(runner, group.rank, role.report),
        recorder=recorder,
    )
    try:
        return rank.run()
    finally:
        telemetry.close()
        if trace is not None:
            trace.close()


def _entry(
    settings: RankSettings,
    group: Group,
    context: zmq.Context[zmq.Socket[bytes]],
    channel: PlanChannel,
    available: Available,
    auto: Auto,
    recorder: Recorder,
    book: EmbeddingBook,
) -> EntryRole:
    reports = pull(context)
    group.store.set("reports", PrivateEndpoint(reports).address)
    requests = context.socket(zmq.PULL)  # with a limit: what it does not take waits in the front end
    gone = requests.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    requests.connect(settings.requests)
    events = push(context, settings.events)
    pids: list[int] = [0] * group.size
    dist.all_gather_object(pids, os.getpid(), group=group.control)
    engine, unavailable = settings.engine, tuple(available.unavailable.items())
    send(events, RanksReady(group.size, tuple(pids), engine.max_running, engine.kv_tokens, unavailable, auto.rule))
    admission = Admission(Readiness(group.size, settings.ranks.ready_timeout_s))
    recorder.gauge("ranks_waiting", "Requests that some rank has not reported", lambda: admission.statistics().waiting)
    recorder.gauge("ranks_ready", "Requests ready, not admitted", lambda: admission.statistics().ready)
    recorder.gauge("ranks_running", "Requests admitted", lambda: admission.statistics().running)
    return EntryRole(
        channel=channel,
        sockets=EntrySockets(requests, events, reports, gone),
        admission=admission,
        schedule=Schedule(settings.engine.chunk_tokens, settings.engine.encode_patches, book),
        regions=Regions(settings.engine.kv_tokens),
        max_running=settings.engine.max_running,
        heartbeat_s=settings.ranks.heartbeat_s,
        waiting_payload_bytes=settings.ranks.waiting_payload_bytes,
        auto=auto,
        recorder=recorder,
    )


def _calibrate(config: RankConfig, group: Group, materialize: Materialize, available: Available) -> Auto:
    """By all ranks together, unless options say all that there is to know. What followers get is never used."""
    handles = available.handles
    needed = config.auto_timing == "measured" or (handles and config.auto_inside_bytes is None)
    if not needed:
        return Auto(AutoRule(config.auto_inside_bytes if handles else None, config.auto_timing))
    channel = PlanChannel(group, lambda arrivals, spent: None)
    if group.rank != 0:
        auto_threshold.follow(channel, materialize)
        return Auto(AutoRule())
    measured = auto_threshold.lead(channel, materialize, group.rank, handles)
    log.info("entry rank: %s", measured)
    inside = config.auto_inside_bytes
    if handles and inside is None:
        inside = measured.inside_bytes
    return Auto(AutoRule(inside if handles else None, config.auto_timing, measured.handover_s), measured.materialize)


def _follower(group: Group, context: zmq.Context[zmq.Socket[bytes]], channel: PlanChannel) -> FollowerRole:
    reports = _reports(group, context)
    dist.all_gather_object([0] * group.size, os.getpid(), group=group.control)
    return FollowerRole(channel, reports)


def _reports(group: Group, context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    """A way for one thread of this rank to report to the entry rank."""
    return push(context, group.store.get("reports").decode())


def _attach(address: ArenaAddress | None) -> tuple[ArenaReader | None, str]:
    """The arena, or why there is none."""
    if address is None:
        return None, "the server has no arena"
    try:
        return ArenaReader(address), ""
    except ConfigError as error:
        return None, str(error)


def _table(engine: EngineConfig) -> PixelTable | None:
    """None: this model's pixels travel wide only. The front end, which makes them, says why."""
    try:
        return PixelTable.read(engine.model)
    except ConfigError:
        return None


def _loader(engine: EngineConfig) -> Callable[[Group, torch.device], Any] | None:
    """Loads a rank's part of the model; None for the null runner, which does without.

    To be made before the group is joined: it imports transformers, for seconds in which no other rank is to wait.
    """
    if engine.runner == "null":
        return None
    from coatcheck.engine.model.qwen2_5_vl import load

    def loaded(group: Group, device: torch.device) -> Any:
        dtype: torch.dtype | str = getattr(torch, engine.dtype) if engine.dtype != "auto" else engine.dtype
        if engine.dtype == "auto" and device.type == "cpu":
            dtype = torch.float32  # CPUs have no fast bfloat16
        return load(engine.model, dtype, device, group.rank, group.size, group.all_reduce)

    return loaded


def _model_runner(
    engine: EngineConfig,
    group: Group,
    model: Any,
    device: torch.device,
    failed: Callable[[str, str], None],
    recorder: Recorder,
) -> ModelRunner:
    cache = EmbeddingCache(group.rank)
    runner = ModelRunner(model, _pool(engine, group, model), cache, device, samples=group.rank == 0, failed=failed)
    recorder.gauge("embedding_cache_bytes", "Bytes of embeddings kept", lambda: cache.statistics().nbytes)
    recorder.gauge("embedding_cache_items", "Images whose embeddings are kept", lambda: cache.statistics().items)
    recorder.count("embedding_cache_hits", "Images not encoded, for embeddings kept", lambda: cache.statistics().hits)
    recorder.count("images_encoded", "Images given to the vision tower", lambda: runner.encoded)
    return runner


def _pool(engine: EngineConfig, group: Group, model: Any) -> KVPool:
    text = model.config.text_config
    return KVPool(
        layers=text.num_hidden_layers,
        heads=text.num_key_value_heads // group.size,
        tokens=engine.kv_tokens,
        head_dim=text.hidden_size // text.num_attention_heads,
        dtype=model.dtype,
        device=model.device,
    )


def _trace(directory: str, rank: int) -> Trace | None:
    if not directory:
        return None
    try:
        return Trace(directory, rank)
    except OSError as error:
        raise ConfigError(f"--trace: {directory} cannot be written to: {error.strerror}") from error


def _device(wanted: str, ranks: int) -> torch.device:
    """This rank's device. "auto": a GPU if there is one for every rank."""
    gpus = torch.cuda.device_count()
    if wanted == "cpu" or (wanted == "auto" and gpus < ranks):
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", os.environ["RANK"])))
    torch.cuda.set_device(device)
    return device


def main(encoded: str, around: Callable[[Materializer, int], Materializer] | None = None) -> None:
    """Entry point of a rank started by our launcher; ``encoded``: RankSettings as JSON."""
    die_with_parent()
    leave_signals_to_parent()
    logging.basicConfig(format="%(asctime)s %(name)s %(message)s", level=logging.WARNING)
    run(RankSettings.decode(encoded), around)
