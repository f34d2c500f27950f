"""The engine on a Ray cluster: many processes, many machines, one store and one manifest.

Ray Data hands out places of images, never pixels; each actor runs the engine of one machine on its
share and writes the features as files of the store, and the driver commits them with the manifest.
`connection` and `cluster` are the only modules that import Ray.
"""

from dinoprobe.ray_engine.cluster import Cluster, connected
from dinoprobe.ray_engine.division import Plan, RaySettings
from dinoprobe.ray_engine.driver import RayEmbedding, embed_on_ray
from dinoprobe.ray_engine.worker import Job

__all__ = [
    "Cluster",
    "Job",
    "Plan",
    "RayEmbedding",
    "RaySettings",
    "connected",
    "embed_on_ray",
]
