"""Time by the roofline, traffic by the ring, and which part a run waits for."""

import pytest

from configs.load import load_config
from configs.problems import ConfigError
from configs.schema import Config
from tests.unit.trainer.settings import settings
from trainer.planning.data import Samples
from trainer.planning.duration import StageTime, plan_duration, plan_stage_time, plan_totals
from trainer.planning.limits import Speed, loading_cores, plan_speed
from trainer.planning.network import plan_traffic
from trainer.planning.step import FakeTraining
from trainer.planning.time import OPERATION_S, DeviceTime, peak_flops, plan_device_time, roofline
from trainer.planning.work import Pass, Update

A100 = "configs/hardware/1x8_a100.yaml"
SAMPLES = Samples(training=1_000_000, validation=50_000, bytes_each=100_000, source="test")
STEP = DeviceTime(
    micro_batch_s=0.09, forward_share=1 / 3, teacher_s=0, update_s=0.01, operations=900, bound_by="memory bandwidth"
)


# Device


@pytest.mark.parametrize(("size", "images", "published"), [("b0", 256, 2489), ("b4", 160, 331)])
def test_an_a100_is_as_fast_as_nvidia_has_measured(size: str, images: int, published: float) -> None:
    """NVIDIA DeepLearningExamples, PyTorch/Classification/ConvNets/efficientnet: one A100 of 80 GB, mixed precision."""
    config = load_config([f"configs/experiment/{size}_imagenet.yaml", A100]).config
    one = FakeTraining(config).run(images, gradients_stay=True)
    update = Update(state_bytes=0, state_tensors=0, peak_bytes=0, kernels=[])

    time = plan_device_time(config, one, update, gradient_bytes=0, average_bytes=0, undo_bytes=0)

    assert time is not None
    assert time.bound_by == "memory bandwidth"
    assert images / time.micro_batch_s == pytest.approx(published, rel=0.03)


def test_an_operation_takes_the_longer_of_arithmetic_and_memory() -> None:
    assert roofline([(100, 1), (1, 10), (0, 5)], bandwidth=10, peak=50) == 2 + 1 + 0.5


def work(kernels: int, **changes: object) -> DeviceTime | None:
    one = Pass(
        images=1,
        image_size=1,
        network_kernels=1,
        forward_kernels=1,
        teacher_bytes=0,
        kept_bytes=0,
        peak_bytes=0,
        kernels=[(0, 1_000_000)] * kernels,
    )
    update = Update(state_bytes=0, state_tensors=0, peak_bytes=0, kernels=[(0, 10)] * 3)
    return plan_device_time(settings(**changes), one, update, gradient_bytes=0, average_bytes=0, undo_bytes=0)


def test_small_operations_wait_for_the_host_and_a_cpu_is_its_own() -> None:
    device = {"launch__hardware__memory_gb_per_s": 1000, "launch__hardware__bf16_tflops": 1}
    gpu, cpu = work(4, **device), work(4, **device, trainer__accelerator="cpu")

    assert gpu is not None
    assert cpu is not None
    assert (gpu.bound_by, gpu.micro_batch_s) == ("starting operations", 4 * OPERATION_S)
    assert gpu.update_s == 3 * OPERATION_S
    assert cpu.micro_batch_s > gpu.micro_batch_s


def test_no_hardware_gives_no_time() -> None:
    assert work(4) is None


def test_a_precision_that_the_device_lacks_is_refused() -> None:
    config = load_config(
        ["experiment/b0_imagenet.yaml", "hardware/1x8_v100.yaml"], ["trainer.precision=bf16-mixed"]
    ).config

    with pytest.raises(ConfigError, match="32-true or 16-mixed: NVIDIA V100 SXM2 32 GB has no rate"):
        peak_flops(config)


# Network


def test_a_ring_sends_each_gradient_twice_but_for_one_part() -> None:
    traffic = plan_traffic(
        settings(launch__hardware__device_link_gb_per_s=100, trainer__devices=8, data__global_batch_size=1024),
        parameters=10_000_000,
        statistics_bytes=8_000,
        world_size=8,
        accumulate=2,
    )

    assert traffic.gradient_bytes == 2 * 7 / 8 * 40_000_000
    assert (traffic.weight_bytes, traffic.statistics_bytes, traffic.buckets) == (0, 14_000, 8)
    assert traffic.seconds == pytest.approx(traffic.total_bytes / 100e9)


def test_a_hook_in_16_bits_halves_what_ddp_sends() -> None:
    arguments = {"parameters": 1000, "statistics_bytes": 8, "world_size": 4, "accumulate": 1}
    plain, hooked = (plan_traffic(settings(**each), **arguments) for each in ({}, {"trainer__ddp_comm_hook": "bf16"}))

    assert hooked.gradient_bytes == plain.gradient_bytes / 2
    assert hooked.statistics_bytes == plain.statistics_bytes


def test_one_device_sends_nothing() -> None:
    traffic = plan_traffic(settings(), parameters=10, statistics_bytes=8, world_size=1, accumulate=1)

    assert (traffic.total_bytes, traffic.seconds, traffic.buckets) == (0, 0, 0)
    assert traffic.exposed_s(micro_batch_s=1, forward_share=0.3, accumulate=1) == 0


@pytest.mark.parametrize(("stage", "gradients", "weights"), [(1, 1, 1), (2, 3, 1), (3, 3, 6)])
def test_zero_reduces_and_gathers_as_its_stage_needs(stage: int, gradients: int, weights: int) -> None:
    config = settings(
        trainer__strategy="deepspeed", deepspeed__zero_stage=stage, ema__enabled=False, trainer__precision="32-true"
    )
    traffic = plan_traffic(config, parameters=1000, statistics_bytes=0, world_size=4, accumulate=3)

    assert traffic.gradient_bytes == gradients * 3 / 4 * 4000
    assert traffic.weight_bytes == weights * 3 / 4 * 4000


def test_nodes_are_joined_by_the_slower_link_and_an_unknown_one_is_no_time() -> None:
    links = {"launch__hardware__device_link_gb_per_s": 400, "trainer__num_nodes": 2, "trainer__devices": 2}
    known = settings(**links, launch__hardware__node_link_gb_per_s=10)
    arguments = {"parameters": 1000, "statistics_bytes": 0, "world_size": 4, "accumulate": 1}

    assert plan_traffic(known, **arguments).link_gb_per_s == 10
    assert plan_traffic(settings(**links), **arguments).seconds is None


def test_the_backward_pass_hides_all_but_the_last_bucket() -> None:
    slow = plan_traffic(
        settings(launch__hardware__device_link_gb_per_s=0.1), parameters=10**7, statistics_bytes=0, world_size=2,
        accumulate=1,
    )  # fmt: skip
    assert slow.seconds == pytest.approx(0.4)

    assert slow.exposed_s(micro_batch_s=9, forward_share=1 / 3, accumulate=1) == pytest.approx(0.4 / slow.buckets)
    assert slow.exposed_s(micro_batch_s=0.3, forward_share=1 / 3, accumulate=1) == pytest.approx(0.4 - 0.2)


def test_batchnorm_that_asks_all_devices_is_waited_for() -> None:
    arguments = {"parameters": 1000, "statistics_bytes": 10**6, "world_size": 4, "accumulate": 3}
    plain, synchronised = (
        plan_traffic(settings(launch__hardware__device_link_gb_per_s=1, trainer__sync_batchnorm=asks), **arguments)
        for asks in (False, True)
    )
    assert plain.layer_bytes == 0
    assert synchronised.layer_bytes == 3 * (3 + 2 * 3 / 4) * 10**6
    assert synchronised.total_bytes - plain.total_bytes == synchronised.layer_bytes
    waits = [traffic.exposed_s(micro_batch_s=9, forward_share=1 / 3, accumulate=3) for traffic in (plain, synchronised)]
    assert waits[1] - waits[0] == pytest.approx(synchronised.layer_bytes / 1e9)


# What a run waits for


def speed(**changes: object) -> tuple[Speed, Config]:
    """Eight devices, 1,000 samples in 0.1 s of each."""
    config = settings(
        **{
            "trainer__devices": 8,
            "trainer__accelerator": "cuda",
            "data__global_batch_size": 800,
            "data__micro_batch_size": 100,
            "data__num_workers": 8,
            "launch__hardware__cores_per_node": 128,
            "launch__hardware__images_per_core_s": 1000,
            "launch__hardware__device_link_gb_per_s": 100,
            **changes,
        }
    )
    traffic = plan_traffic(config, parameters=10**7, statistics_bytes=0, world_size=8, accumulate=1)
    return plan_speed(config, STEP, traffic, SAMPLES, world_size=8), config


def test_a_device_that_is_fed_is_the_bottleneck() -> None:
    planned, _ = speed()

    assert planned.bottleneck == "device"
    assert "memory bandwidth" in planned.advice
    assert planned.limits["device"] == pytest.approx(8000)
    assert 7900 < planned.images_per_s < 8000  # the last bucket is waited for


def test_few_workers_make_decoding_the_bottleneck() -> None:
    planned, _ = speed(data__num_workers=1, launch__hardware__images_per_core_s=500)

    assert planned.bottleneck == "cpus"
    assert planned.images_per_s == pytest.approx(4000)
    assert "data.num_workers" in planned.advice


def test_few_cores_do_too_whatever_the_workers() -> None:
    planned, config = speed(launch__hardware__cores_per_node=16, launch__hardware__images_per_core_s=500)

    assert loading_cores(config, 8) == 1
    assert planned.bottleneck == "cpus"


def test_on_a_gpu_that_decodes_no_core_is_waited_for() -> None:
    planned, _ = speed(data__num_workers=1, data__decoder="nvjpeg")

    assert "cpus" not in planned.limits
    assert planned.cores_per_device is None


def test_slow_storage_is_the_bottleneck() -> None:
    planned, _ = speed(launch__hardware__storage_gb_per_s=0.2)

    assert planned.bottleneck == "storage"
    assert planned.images_per_s == pytest.approx(2000)
    assert planned.storage_bytes_per_s == pytest.approx(0.2e9)


def test_samples_repeated_in_a_batch_are_read_once() -> None:
    slow = {"launch__hardware__storage_gb_per_s": 0.2, "data__augmentation__aug_repeats": 2}
    planned, config = speed(**slow)

    assert planned.limits["storage"] == pytest.approx(4000)
    assert planned.storage_bytes_per_s == pytest.approx(planned.images_per_s * 50_000)
    assert planned.limits["cpus"] == pytest.approx(64_000)  # each is decoded anew
    alone = plan_traffic(config, parameters=0, statistics_bytes=0, world_size=1, accumulate=1)
    assert plan_totals(config, SAMPLES, alone, steps=1000).read_bytes == 400_000 * SAMPLES.bytes_each


def test_a_slow_network_is_the_bottleneck() -> None:
    planned, _ = speed(launch__hardware__device_link_gb_per_s=0.1)

    assert planned.bottleneck == "network"
    assert planned.step_s == pytest.approx(0.1 + 0.7 - 0.06)


def test_loading_in_the_training_process_adds_to_a_step() -> None:
    planned, _ = speed(data__num_workers=0)

    assert planned.step_s > 0.1 + 800 / 8000


# The whole run


def test_hours_are_those_of_steps_and_of_validations_with_both_sets_of_weights() -> None:
    planned, config = speed()
    traffic = plan_traffic(config, parameters=10**7, statistics_bytes=0, world_size=8, accumulate=1)
    stage = plan_stage_time(config, STEP, traffic, SAMPLES, steps=3600, world_size=8)

    run = plan_duration(config, [stage], SAMPLES, evaluation_s=2 * 0.03, validations=2, world_size=8)

    assert run.training_hours == pytest.approx(planned.step_s)
    assert run.device_hours == pytest.approx(8 * (run.training_hours + run.validation_hours))
    # 50,000 samples, twice, with two sets of weights, in batches of 64
    assert run.validation_hours * 3600 == pytest.approx(200_000 / 8 * 0.03 / 64)


def test_validation_waits_for_data_too() -> None:
    planned, config = speed(launch__hardware__storage_gb_per_s=0.2)
    stage = StageTime(device=STEP, speed=planned, hours=1, teacher_hours=0)

    run = plan_duration(config, [stage], SAMPLES, evaluation_s=0.06, validations=2, world_size=8)

    assert run.validation_hours * 3600 == pytest.approx(100_000 / 2000)
