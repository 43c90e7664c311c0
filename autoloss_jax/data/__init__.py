"""Ranking data: LETOR text or synthetic queries to ragged arrays, scaled, bucketed and planned."""

from autoloss_jax.data.arrays import dataset_from_arrays, queries_from_arrays
from autoloss_jax.data.batches import (
    PIECE_DOCUMENTS,
    BatchPlan,
    Buckets,
    BucketShapes,
    all_rows,
    assign_folds,
    bucket_queries,
    common_shapes,
    draw_batches,
    held_out_rows,
    pad_queries,
    padding_waste,
    plan_buckets,
    plan_labels,
    rare_buckets,
    slots_per_bucket,
)
from autoloss_jax.data.letor import load_letor, read_letor
from autoloss_jax.data.queries import (
    Dataset,
    FeatureView,
    Fold,
    ListBatch,
    Queries,
    concatenate,
    make_dataset,
)
from autoloss_jax.data.scaling import TRANSFORMS, Scaling, fit_scaling, scale_fold
from autoloss_jax.data.sources import load_dataset
from autoloss_jax.data.summary import DataSummary, summarize
from autoloss_jax.data.synthetic import synthetic
from autoloss_jax.data.tfds import load_tfds

__all__ = [
    "PIECE_DOCUMENTS",
    "TRANSFORMS",
    "BatchPlan",
    "BucketShapes",
    "Buckets",
    "DataSummary",
    "Dataset",
    "FeatureView",
    "Fold",
    "ListBatch",
    "Queries",
    "Scaling",
    "all_rows",
    "assign_folds",
    "bucket_queries",
    "common_shapes",
    "concatenate",
    "dataset_from_arrays",
    "draw_batches",
    "fit_scaling",
    "held_out_rows",
    "load_dataset",
    "load_letor",
    "load_tfds",
    "make_dataset",
    "pad_queries",
    "padding_waste",
    "plan_buckets",
    "plan_labels",
    "queries_from_arrays",
    "rare_buckets",
    "read_letor",
    "scale_fold",
    "slots_per_bucket",
    "summarize",
    "synthetic",
]
