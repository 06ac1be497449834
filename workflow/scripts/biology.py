"""Count, measure and place a job's nuclei: densities, areas, markers, neighbours."""

from slideloom.artefacts.zarrio import open_array, read_attributes
from slideloom.metrics.biology import slide_biology
from slideloom.metrics.tissue_area import PredictedTissue
from slideloom.slides.facts import load_facts
from slideloom.slides.tissue import read_tissue
from slideloom.workflow.job import Job

job = Job.start(snakemake)
run = (job.wildcards["experiment"], job.wildcards["fold"])
image = job.config["image"]
predicted = bool(job.inputs["maps"])


def work(slide):
    maps, place = job.paths.maps(*run, slide), job.paths.biology(*run, slide)
    about = read_attributes(maps)
    facts, polygons = load_facts(job.paths.slide_facts(slide)), read_tissue(job.paths.tissue(slide))
    covered = open_array(maps / "covered") if predicted else None  # another program looked at the whole image
    tissue = PredictedTissue.of(polygons, facts, image, float(about["scale"]), covered)
    slide_biology(job.paths.cells(*run, slide), image, tissue, place, made_from={"maps": about}, workers=job.threads)
    return [place]


job.run(work, requires=["facts", "tissue", *(["maps"] if predicted else []), "instances"], per_item=job.edited)
