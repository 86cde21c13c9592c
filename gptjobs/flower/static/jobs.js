/* Jobs in Flower's own table and page: what is more than text, and refreshing. */

(function ($) {
    'use strict';

    var REFRESH_MS = 2000,
        TELLING_STATES = ['pausing', 'paused', 'cancelling', 'diverged'];

    function bar(job) {
        return $('<div class="job-bar">').append(
            $('<div>').css('width', job.percent + '%').toggle(job.percent > 0),
            $('<span>').text(job.step)
        );
    }

    function link(job) {
        var prefix = location.pathname.replace(/\/tasks$/, '');
        return $('<a class="text-nowrap">').text(job.job).attr({
            href: prefix + '/task/' + encodeURIComponent(job.uuid),
            title: job.uuid
        });
    }

    // Flower has made text of every cell; these become what they are
    function showJob(row, job) {
        this.api().columns().header().each(function (header, index) {
            var name = $(header).data('column'), cell = $('td', row).eq(index);
            if (name === 'job') {
                cell.empty().append(link(job));
            } else if (name === 'step' && job.step) {
                cell.empty().append(bar(job));
            } else if (name === 'state') {
                cell.attr('title', job.reason);
                if (TELLING_STATES.includes(job.job_state)) {
                    cell.append($('<div class="job-state">').text(job.job_state));
                }
            }
        });
    }

    if ($('#tasks-table').length) {
        $.extend($.fn.dataTable.defaults, {rowCallback: showJob});
        $.fn.dataTable.ext.errMode = 'none'; // Flower may be away for a while: no dialog each time
        $(function () {
            var table = $('#tasks-table').on('xhr.dt', function (event, settings, answer) {
                $('.tasks-table-card').toggleClass('job-stale', !answer);
            }).DataTable();
            setInterval(function () {
                table.ajax.reload(null, false);
            }, REFRESH_MS);
        });
    }

    if ($('#job').length) {
        setInterval(function () {
            $('#job').load(location.pathname + ' #job > *', function (page, status) {
                $('#job').toggleClass('job-stale', status === 'error');
                $('#task-terminate').prop('hidden', $('#job > section').attr('data-ended') === 'True');
            });
        }, REFRESH_MS);
    }
}(jQuery));
