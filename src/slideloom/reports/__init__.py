"""From slides to tables and a page: gathering, statistics, charts, pictures, HTML."""
