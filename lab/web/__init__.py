"""The page of a running topology: ``launch.py web``, ``launch.py run --web``. docs/web.md says what it shows.

Who owns what:

* *hub.py* has the one `Watch` of the topology: it takes a sample each second, whoever looks. To each viewer it gives the last one:
  who reads slowly misses samples, and holds up nobody. States: *looking* → *ended*, with the topology, which every viewer is told.
* *controls.py* is what changes things, by the same words as the command line has. What it began (traffic, processes that it
  stopped) it ends when the server does.
* *security.py* decides, before anybody else sees a request, whether it comes from this page: its Host, its Origin, its token.
* *app.py* are the routes. GET changes nothing; POST /do/… is a control.
* *costs.py* is the ledger of each guest, *metrics.py* OpenMetrics: functions of a picture, a sample, counters. The drawing is
  lab/page's.
* *assets/* is the page itself: static files, no words of a guest in them. Such words come as JSON and are put in as text.

What fails: a viewer that goes away is a closed connection; a topology that ends is said on the page, and ends the server; a keeper
that does not answer leaves the last sample standing. The data path does nothing for any of it.
"""
