"""Streams, events and graphs: work is done as late as the CUDA model allows, when something waits for it.

So a buffer that is reused or freed too early, and a missing wait between streams, change results or are faults.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

from driver.answers import CONTEXT, DEVICES
from driver.devices import Devices
from driver.memory import Fault
from driver.words import INVALID_VALUE, NOT_READY, SUCCESS, Words, low, put

T = TypeVar("T")
Work = Callable[[], None]
RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED; 0 is that of all threads unless they say otherwise
NO_DESTRUCTOR_SYNC, MOVE = 1, 1  # CUuserObject_flags, CUuserObjectRetain_flags
DEFAULT_HANDLES = (0, 1, 2)  # null, legacy, per thread


class Owned:
    """A user object: `destroy(pointer)` is called when the last graph that holds it is gone and has done its work."""

    def __init__(self, pointer: int, destroy: int, count: int) -> None:
        self.pointer, self.destroy, self.count = pointer, destroy, count

    def drop(self, count: int = 1) -> None:
        self.count -= count
        if not self.count:
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.destroy)(self.pointer)


class Graph:
    """The work of a captured stream, in order, and the user objects that live as long. Instantiated, it is another one."""

    def __init__(self, work: list[Work] | None = None, owned: list[Owned] | None = None) -> None:
        self.work: list[Work] = [] if work is None else work
        self.owned: list[Owned] = [] if owned is None else owned
        self.replays = 0  # whose work is not yet done
        self.destroyed = False

    def instantiated(self) -> Graph:
        for thing in self.owned:
            thing.count += 1
        return Graph([*self.work], [*self.owned])

    def settle(self) -> None:
        """Let go of what it holds once nothing needs it any more."""
        if self.destroyed and not self.replays:
            while self.owned:
                self.owned.pop().drop()

    def replayed(self) -> None:
        self.replays -= 1
        self.settle()


class Stream:
    """A queue of work, each piece with its place in the order of all enqueued. blocking: it and the device's default stream wait
    for each other. capture: where work goes instead while the stream is captured.
    """

    def __init__(self, device: int, blocking: bool, default: bool = False) -> None:
        self.device, self.blocking, self.default = device, blocking, default
        self.queue: list[tuple[int, Work]] = []
        self.capture: Graph | None = None


class Mark:
    """A place in a stream that an event recorded."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.passed = stream, False

    def reach(self) -> None:
        self.passed = True


class Event:
    """Its last record; none: it has been reached."""

    def __init__(self, device: int) -> None:
        self.device = device
        self.mark: Mark | None = None


class Streams(Devices):
    """The handles of everything the driver gives out, and the calls about streams, events and graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[int, object] = {}
        self.handle, self.order = 0x100, 0
        self.defaults = [Stream(device, True, default=True) for device in range(DEVICES)]
        self.made: list[Stream] = []  # the streams among the objects
        self.modes = threading.local()  # each thread's capture mode

    def new(self, thing: object) -> int:
        """A handle for it."""
        self.handle += 0x10
        self.objects[self.handle] = thing
        return self.handle

    def handle_of(self, thing: object) -> int:
        """The handle that it has, or a new one."""
        return next((handle for handle, known in self.objects.items() if known is thing), None) or self.new(thing)

    def known(self, kind: type[T], handle: int) -> T:
        """What has that handle; a Fault where it is gone or something else."""
        found = self.objects.get(handle)
        if not isinstance(found, kind):
            raise Fault(f"handle {handle:#x} is no {kind.__name__} (any more)")
        return found

    @property
    def default(self) -> Stream:
        """The default stream of the device that this thread works on."""
        return self.defaults[self.device]

    def stream(self, handle: int) -> Stream:
        return self.default if handle in DEFAULT_HANDLES else self.known(Stream, handle)

    def streams(self, device: int) -> list[Stream]:
        """All of a device, the default one first."""
        return [self.defaults[device], *(s for s in self.made if s.device == device)]

    def captured(self) -> bool:
        """Whether any stream is."""
        return any(stream.capture is not None for stream in self.made)

    # ---- the order of work

    def enqueue(self, stream: Stream, work: Work) -> None:
        """Have it done in the order of its stream, or put it into the graph that the stream is captured into."""
        if stream.capture is not None:
            stream.capture.work.append(work)
            return
        self.order += 1
        stream.queue.append((self.order, work))

    def drain(self, stream: Stream, until: int | None = None) -> None:
        """Do a stream's work, up to and with that number of the order."""
        while stream.queue and (until is None or stream.queue[0][0] <= until):
            number, work = stream.queue[0]
            if stream.default:
                for other in self.streams(stream.device)[1:]:
                    if other.blocking:
                        self.drain(other, number)
            elif stream.blocking:
                self.drain(self.defaults[stream.device], number)
            if stream.queue and stream.queue[0][0] == number:
                stream.queue.pop(0)
                work()

    def everything(self, device: int) -> None:
        """Do all work of all streams of a device."""
        for stream in self.streams(device):
            self.drain(stream)

    def cuCtxSynchronize(self, a: Words) -> None:
        self.everything(self.device)

    # ---- streams

    def cuStreamCreate(self, a: Words) -> None:
        self.made.append(Stream(self.device, not a[1] & 1))
        put(a[0], self.new(self.made[-1]))

    def cudaStreamCreate(self, a: Words) -> None:
        self.cuStreamCreate([a[0], 0])

    def cuStreamDestroy(self, a: Words) -> None:
        stream = self.stream(a[0])
        self.drain(stream)
        self.made.remove(stream)
        del self.objects[a[0]]

    def cuStreamSynchronize(self, a: Words) -> None:
        self.drain(self.stream(a[0]))

    def cuStreamQuery(self, a: Words) -> int:
        return NOT_READY if self.stream(a[0]).queue else SUCCESS

    def cuStreamGetCtx(self, a: Words) -> None:
        put(a[1], CONTEXT + self.stream(a[0]).device)

    def cuStreamGetDevice(self, a: Words) -> None:
        put(a[1], self.stream(a[0]).device, 4)

    def cuStreamGetFlags(self, a: Words) -> None:
        put(a[1], 0 if self.stream(a[0]).blocking else 1, 4)

    # ---- capture and graphs

    def cuStreamIsCapturing(self, a: Words) -> None:
        put(a[1], int(self.stream(a[0]).capture is not None), 4)

    def cuStreamBeginCapture(self, a: Words) -> None:
        stream = self.stream(a[0])
        if stream.default:
            raise Fault("the default stream cannot be captured")
        if stream.capture is not None:
            raise Fault("a stream is captured that is being captured")
        stream.capture = Graph()

    def cuStreamEndCapture(self, a: Words) -> None:
        stream = self.stream(a[0])
        if stream.capture is None:
            raise Fault("the end of a capture that has not begun")
        put(a[1], self.handle_of(stream.capture))
        stream.capture = None

    def cuThreadExchangeStreamCaptureMode(self, a: Words) -> None:
        given = ctypes.c_int.from_address(a[0])
        before = getattr(self.modes, "mode", 0)
        self.modes.mode, given.value = given.value, before

    def capture_forbids(self) -> bool:
        """Whether a stream is captured and this thread has not said that it knows what it does."""
        return getattr(self.modes, "mode", 0) != RELAXED and self.captured()

    def cuStreamGetCaptureInfo_v2(self, a: Words) -> None:
        stream = self.stream(a[0])
        put(a[1], int(stream.capture is not None), 4)
        if stream.capture is not None and a[3]:
            put(a[3], self.handle_of(stream.capture))

    def cuGraphInstantiate(self, a: Words) -> None:
        put(a[0], self.new(self.known(Graph, a[1]).instantiated()))

    def cuGraphLaunch(self, a: Words) -> None:
        graph, stream = self.known(Graph, a[0]), self.stream(a[1])
        graph.replays += 1
        for work in (*graph.work, graph.replayed):
            self.enqueue(stream, work)

    def cuGraphDestroy(self, a: Words) -> None:
        graph = self.known(Graph, a[0])
        del self.objects[a[0]]
        graph.destroyed = True
        graph.settle()

    def cuUserObjectCreate(self, a: Words) -> int | None:
        if low(a[4]) != NO_DESTRUCTOR_SYNC:
            return INVALID_VALUE
        put(a[0], self.new(Owned(a[1], a[2], low(a[3]))))
        return None

    def cuUserObjectRelease(self, a: Words) -> None:
        self.known(Owned, a[0]).drop(low(a[1]))

    def cuGraphRetainUserObject(self, a: Words) -> None:
        graph, thing = self.known(Graph, a[0]), self.known(Owned, a[1])
        thing.count += 0 if low(a[3]) == MOVE else low(a[2])
        graph.owned += [thing] * low(a[2])

    # ---- events

    def cuEventCreate(self, a: Words) -> None:
        put(a[0], self.new(Event(self.device)))

    def cuEventDestroy(self, a: Words) -> None:
        self.known(Event, a[0])
        del self.objects[a[0]]

    def cuEventRecord(self, a: Words) -> None:
        stream, event = self.stream(a[1]), self.known(Event, a[0])
        if event.device != stream.device:
            raise Fault(f"an event of device {event.device} is recorded in a stream of device {stream.device}")
        if stream.capture is None:
            event.mark = Mark(stream)
            self.enqueue(stream, event.mark.reach)

    def cuEventQuery(self, a: Words) -> int:
        mark = self.known(Event, a[0]).mark
        return SUCCESS if mark is None or mark.passed else NOT_READY

    def cuEventSynchronize(self, a: Words) -> None:
        self.reach(self.known(Event, a[0]).mark)

    def cuStreamWaitEvent(self, a: Words) -> None:
        mark, stream = self.known(Event, a[1]).mark, self.stream(a[0])
        if stream.capture is not None and mark is not None:
            raise Fault("a captured stream waits for what is not captured")
        self.enqueue(stream, lambda: self.reach(mark))

    def reach(self, mark: Mark | None) -> None:
        """Do a stream's work up to a mark."""
        while mark is not None and not mark.passed:
            self.drain(mark.stream, mark.stream.queue[0][0])
