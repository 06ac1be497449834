"""Decoders on stored tokens, decoders whose encoder runs along, and published ones."""


rule train:
    input:
        split=split_record,
        patches=train_patches,
        targets=train_targets,
        cells=train_cells,
        embeddings=train_embeddings,
    output:
        record("train", "{experiment}", unit="{fold}"),
    log:
        log_of("train", "{experiment}", unit="{fold}"),
    benchmark:
        benchmark_of("train", "{experiment}", unit="{fold}")
    wildcard_constraints:
        experiment=one_of(TRAINED),
    conda:
        ENV
    resources:
        mem_mb=memory_of("train", "experiment", "fold"),
        runtime=minutes_of("train", "experiment", "fold"),
    params:
        spec=spec_of("train", "experiment", "fold"),
    script:
        "../scripts/train.py"


rule train_live:
    input:
        split=split_record,
        patches=train_patches,
        targets=train_targets,
        cells=train_cells,
        statistics=statistics_record,
        weights=weight_files,
    output:
        record("train", "{experiment}", unit="{fold}"),
    log:
        log_of("train", "{experiment}", unit="{fold}"),
    benchmark:
        benchmark_of("train", "{experiment}", unit="{fold}")
    wildcard_constraints:
        experiment=one_of(LIVE),
    conda:
        ENV
    resources:
        mem_mb=memory_of("train_live", "experiment", "fold"),
        runtime=minutes_of("train_live", "experiment", "fold"),
    params:
        spec=spec_of("train_live", "experiment", "fold"),
    script:
        "../scripts/train_live.py"


rule pretrained:
    input:
        checkpoint=published_file,
        weights=weight_files,
    output:
        record("train", "{experiment}", unit="{fold}"),
    log:
        log_of("train", "{experiment}", unit="{fold}"),
    benchmark:
        benchmark_of("train", "{experiment}", unit="{fold}")
    wildcard_constraints:
        experiment=one_of(PUBLISHED),
    conda:
        ENV
    resources:
        mem_mb=memory_of("pretrained", "experiment", "fold"),
        runtime=minutes_of("pretrained", "experiment", "fold"),
    params:
        spec=spec_of("pretrained", "experiment", "fold"),
    script:
        "../scripts/pretrained.py"
