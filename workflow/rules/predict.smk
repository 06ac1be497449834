"""Tiles to slide maps, maps to nuclei, nuclei to figures."""


rule maps:
    input:
        split=split_record,
        model=record("train", "{experiment}", unit="{fold}"),
        facts=record("facts"),
        patches=experiment_patches_job,
        embeddings=embeddings_job,
        statistics=statistics_record,
        weights=weight_files,
    output:
        record("maps", "{experiment}", "{fold}"),
    log:
        log_of("maps", "{experiment}", "{fold}"),
    benchmark:
        benchmark_of("maps", "{experiment}", "{fold}")
    conda:
        ENV
    params:
        spec=spec_of("maps", "experiment", "fold"),
    script:
        "../scripts/maps.py"


rule instances:
    input:
        facts=record("facts"),
        patches=patches_job,
        maps=record("maps", "{experiment}", "{fold}"),
    output:
        record("instances", "{experiment}", "{fold}"),
    log:
        log_of("instances", "{experiment}", "{fold}"),
    benchmark:
        benchmark_of("instances", "{experiment}", "{fold}")
    conda:
        ENV
    params:
        spec=spec_of("instances", "experiment", "fold"),
    script:
        "../scripts/instances.py"


rule metrics:
    input:
        split=split_record,
        facts=record("facts"),
        targets=targets_job,
        maps=record("maps", "{experiment}", "{fold}"),
        instances=record("instances", "{experiment}", "{fold}"),
    output:
        record("metrics", "{experiment}", "{fold}"),
    log:
        log_of("metrics", "{experiment}", "{fold}"),
    benchmark:
        benchmark_of("metrics", "{experiment}", "{fold}")
    conda:
        ENV
    params:
        spec=spec_of("metrics", "experiment", "fold"),
    script:
        "../scripts/metrics.py"
