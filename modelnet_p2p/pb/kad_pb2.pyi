from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class KadRecord(_message.Message):
    __slots__ = ("key", "value", "time_received")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    TIME_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    value: bytes
    time_received: str
    def __init__(self, key: _Optional[bytes] = ..., value: _Optional[bytes] = ..., time_received: _Optional[str] = ...) -> None: ...

class KadPeer(_message.Message):
    __slots__ = ("id", "addrs", "connection")
    ID_FIELD_NUMBER: _ClassVar[int]
    ADDRS_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    addrs: _containers.RepeatedScalarFieldContainer[bytes]
    connection: int
    def __init__(self, id: _Optional[bytes] = ..., addrs: _Optional[_Iterable[bytes]] = ..., connection: _Optional[int] = ...) -> None: ...

class KadMessage(_message.Message):
    __slots__ = ("type", "key", "record", "closer_peers", "provider_peers", "records", "cursor", "refused", "retry_ms", "cached")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    CLOSER_PEERS_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_PEERS_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    RETRY_MS_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    type: int
    key: bytes
    record: KadRecord
    closer_peers: _containers.RepeatedScalarFieldContainer[bytes]
    provider_peers: _containers.RepeatedScalarFieldContainer[bytes]
    records: _containers.RepeatedScalarFieldContainer[bytes]
    cursor: bytes
    refused: str
    retry_ms: int
    cached: bool
    def __init__(self, type: _Optional[int] = ..., key: _Optional[bytes] = ..., record: _Optional[_Union[KadRecord, _Mapping]] = ..., closer_peers: _Optional[_Iterable[bytes]] = ..., provider_peers: _Optional[_Iterable[bytes]] = ..., records: _Optional[_Iterable[bytes]] = ..., cursor: _Optional[bytes] = ..., refused: _Optional[str] = ..., retry_ms: _Optional[int] = ..., cached: bool = ...) -> None: ...
