"""Real servers behind the ``Engine`` seam, over HTTP: SGLang, vLLM, llama.cpp, and their like; and
OpenVINO GenAI, in this process.
"""

from apr.remote.connect import Server as Server
from apr.remote.connect import connect as connect
from apr.remote.connect import update_weights as update_weights
from apr.remote.engine import RemoteEngine as RemoteEngine
from apr.remote.http import RemoteConfig as RemoteConfig
from apr.remote.launch import Launch as Launch
from apr.remote.launch import launched as launched
from apr.remote.launch import serve as serve
from apr.remote.replicas import Replicas as Replicas
from apr.remote.replicas import pinned as pinned

__all__ = [
    "Launch",
    "RemoteConfig",
    "RemoteEngine",
    "Replicas",
    "Server",
    "connect",
    "launched",
    "pinned",
    "serve",
    "update_weights",
]
